package org.dap.runner

import java.io.IOException
import java.util.concurrent.TimeUnit
import java.util.regex.Pattern
import org.dap.core.Conditions
import org.dap.core.Description
import org.dap.core.Host

/** What Android's own commands tell; there is no context to ask without an app. */
class ShellHost : Host {
    override fun describe(): Description {
        val model = listOf("ro.product.manufacturer", "ro.product.model").mapNotNull { property(it) }
        return Description(
            device = model.joinToString(" ").ifEmpty { "an Android device" },
            os = "Android ${property("ro.build.version.release") ?: "of an unknown version"}",
            cpu = property("ro.soc.model") ?: property("ro.board.platform") ?: property("ro.hardware"),
            cores = Runtime.getRuntime().availableProcessors(),
            arch = property("ro.product.cpu.abi") ?: System.getProperty("os.arch"),
            emulated = emulator(),
        )
    }

    override fun conditions(): Conditions {
        val battery = HashMap<String, String>()
        val lines = FIELD.matcher(said("dumpsys", "battery"))
        while (lines.find()) battery[lines.group(1)!!] = lines.group(2)!!
        val thermal = THERMAL.matcher(said("dumpsys", "thermalservice"))
        val saver = said("settings", "get", "global", "low_power").trim()
        return Conditions(
            temperatureC = battery["temperature"]?.toIntOrNull()?.let { it / 10.0 },
            battery = battery["level"]?.let { "$it % ${STATES[battery["status"]] ?: ""}".trim() },
            batterySaver = if (saver in setOf("0", "1")) saver == "1" else null,
            thermalStatus = if (thermal.find()) thermal.group(1)!!.toInt() else null,
        )
    }

    private fun emulator(): String? = when {
        System.getProperty("java.vm.name") != "Dalvik" -> System.getProperty("java.vm.name")
        property("ro.kernel.qemu") == "1" || property("ro.hardware") in EMULATORS -> "the Android emulator"
        else -> null
    }

    private fun property(name: String): String? = said("getprop", name).trim().ifEmpty { null }

    /** What a command prints; nothing if it is not there, fails or hangs. */
    private fun said(vararg command: String): String = try {
        val process = ProcessBuilder(*command).redirectErrorStream(true).start()
        process.outputStream.close()
        val text = process.inputStream.bufferedReader().readText()
        val ended = process.waitFor(ANSWER_S, TimeUnit.SECONDS)
        if (ended && process.exitValue() == 0) text else ""
    } catch (error: IOException) {
        ""
    }

    private companion object {
        const val ANSWER_S = 10L
        val EMULATORS = setOf("ranchu", "goldfish")
        val STATES = mapOf("2" to "charging", "3" to "discharging", "4" to "not charging", "5" to "full")
        val FIELD: Pattern = Pattern.compile("^ *(\\w+): (.+)$", Pattern.MULTILINE)
        val THERMAL: Pattern = Pattern.compile("Thermal Status: (\\d)")
    }
}
