package org.dap.classifier

import android.content.Context
import android.content.Intent
import android.content.IntentFilter
import android.os.BatteryManager
import android.os.Build
import android.os.PowerManager
import org.dap.core.Conditions
import org.dap.core.Description
import org.dap.core.Host

/** What Android tells an app of the phone. */
class AppHost(private val context: Context) : Host {
    /** set when the app has left the front, or the screen has gone off */
    @Volatile var away = false

    private val power = context.getSystemService(Context.POWER_SERVICE) as PowerManager

    override fun describe() = Description(
        device = "${Build.MANUFACTURER} ${Build.MODEL}",
        os = "Android ${Build.VERSION.RELEASE}",
        cpu = if (Build.VERSION.SDK_INT >= 31) Build.SOC_MODEL else Build.BOARD,
        cores = Runtime.getRuntime().availableProcessors(),
        arch = Build.SUPPORTED_ABIS.firstOrNull(),
        emulated = if (Build.HARDWARE in EMULATORS) "the Android emulator" else null,
    )

    override fun conditions(): Conditions {
        val battery = context.registerReceiver(null, IntentFilter(Intent.ACTION_BATTERY_CHANGED))
        val level = battery?.getIntExtra(BatteryManager.EXTRA_LEVEL, -1) ?: -1
        val scale = battery?.getIntExtra(BatteryManager.EXTRA_SCALE, -1) ?: -1
        val state = STATES[battery?.getIntExtra(BatteryManager.EXTRA_STATUS, -1)] ?: ""
        val tenths = battery?.getIntExtra(BatteryManager.EXTRA_TEMPERATURE, Int.MIN_VALUE) ?: Int.MIN_VALUE
        return Conditions(
            temperatureC = if (tenths == Int.MIN_VALUE) null else tenths / 10.0,
            battery = if (level < 0 || scale <= 0) null else "${100 * level / scale} % $state".trim(),
            batterySaver = power.isPowerSaveMode,
            thermalStatus = if (Build.VERSION.SDK_INT >= 29) power.currentThermalStatus else null,
        )
    }

    override fun disturbed(): String? = when {
        away -> context.getString(R.string.check_away)
        !power.isInteractive -> "the screen was off"
        else -> null
    }

    private companion object {
        val EMULATORS = setOf("ranchu", "goldfish")
        val STATES = mapOf(
            BatteryManager.BATTERY_STATUS_CHARGING to "charging",
            BatteryManager.BATTERY_STATUS_DISCHARGING to "discharging",
            BatteryManager.BATTERY_STATUS_NOT_CHARGING to "not charging",
            BatteryManager.BATTERY_STATUS_FULL to "full",
        )
    }
}
