package org.dap.classifier

import android.app.Activity
import android.content.Intent
import android.os.Bundle
import android.view.View
import android.view.WindowManager
import android.widget.Button
import android.widget.LinearLayout
import android.widget.ProgressBar
import android.widget.TextView
import org.dap.core.Conditions
import org.dap.core.Format
import org.dap.core.GoldenCheck
import org.dap.core.LatencyResult
import org.dap.core.Protocol
import org.dap.core.Refused
import org.dap.core.Role
import org.dap.core.Stopped
import org.dap.core.argmax
import org.dap.core.time
import org.dap.core.writeJson

/** The golden pictures, the time of an inference, and what may slow this phone down; the result as JSON. */
class CheckActivity : Activity() {
    private lateinit var host: AppHost

    @Volatile private var stop = false
    private var running = false
    private var result: String? = null

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        setContentView(R.layout.check)
        host = AppHost(applicationContext)
        find<Button>(R.id.quick).setOnClickListener { run(Protocol.QUICK) }
        find<Button>(R.id.full).setOnClickListener { run(Protocol.FULL) }
        find<Button>(R.id.stop).setOnClickListener { stop = true }
        find<Button>(R.id.share_result).setOnClickListener {
            val send = Intent(Intent.ACTION_SEND).setType("application/json").putExtra(Intent.EXTRA_TEXT, result)
            startActivity(Intent.createChooser(send, getString(R.string.check_share)))
        }
    }

    override fun onPause() {
        super.onPause()
        host.away = true
    }

    override fun onDestroy() {
        super.onDestroy()
        stop = true
    }

    private fun run(protocol: Protocol) {
        if (running) return
        running = true
        stop = false
        host.away = false
        window.addFlags(WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON)
        find<LinearLayout>(R.id.results).removeAllViews()
        buttons()
        step(getString(R.string.check_golden_running), 0.0)
        Models.worker.execute {
            val told = try {
                check(Models.load(this), protocol)
                ""
            } catch (error: Stopped) {
                getString(R.string.check_stopped)
            } catch (error: Unusable) {
                error.message.orEmpty()
            } catch (error: Refused) {
                getString(R.string.check_failed, error.message)
            }
            runOnUiThread {
                running = false
                window.clearFlags(WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON)
                step(told, 1.0)
                buttons()
            }
        }
    }

    /** On the worker. */
    private fun check(model: Loaded, protocol: Protocol) {
        val entry = model.file(Role.PRUNED)
        val program = model.programs.getValue(Role.PRUNED)
        val golden = GoldenCheck.of(model.manifest, entry.file, model.pictures.map { program.logits(it) })
        runOnUiThread { showGolden(model, golden) }
        val picture = model.pictures.firstOrNull() ?: ByteArray(3 * model.manifest.input.run { height * width })
        val before = host.conditions()
        runOnUiThread { step(getString(R.string.check_rest), 0.0) }
        val programs = model.programs.mapKeys { model.file(it.key).file }
        var toldAt = -1
        val times = time(programs, picture, protocol) { seconds ->
            if (stop) throw Stopped()
            if (seconds.toInt() != toldAt) {
                toldAt = seconds.toInt()
                val text = getString(R.string.check_time_running, toldAt, protocol.seconds.toInt())
                runOnUiThread { step(text, seconds / protocol.seconds) }
            }
        }
        val after = host.conditions()
        val device = host.describe()
        val why = device.emulated ?: model.engine.untimed ?: host.disturbed() ?: Conditions.heldBack(before, after)
        val sound = if (why == null) times else times.mapValues { it.value.invalid(why) }
        val json = linkedMapOf(
            "version" to 1,
            "created_ms" to System.currentTimeMillis(),
            "file" to entry.file,
            "sha256" to entry.sha256,
            "device" to device.toJson(),
            "threads" to Models.THREADS,
            "runtime" to model.engine.runtime,
            "runtime_version" to model.engine.version,
            "before" to before.toJson(),
            "after" to after.toJson(),
            "thermal_status" to listOf(before.thermalStatus, after.thermalStatus),
            "golden" to golden.logits,
            "golden_error" to golden.error,
            "golden_limit" to golden.limit,
            "golden_top1" to golden.logits.map { model.manifest.labels[argmax(it)] },
            "protocol" to protocol.name,
            "latency" to sound.mapValues { it.value.toJson() },
        )
        runOnUiThread {
            result = writeJson(json)
            showTimes(model, sound, after)
        }
    }

    private fun showGolden(model: Loaded, golden: GoldenCheck) {
        val verdict = when (golden.verdict) {
            GoldenCheck.Verdict.GOOD -> R.string.check_good
            GoldenCheck.Verdict.BAD -> R.string.check_bad
            GoldenCheck.Verdict.UNKNOWN -> R.string.check_unknown
        }
        add(Views.title(this, getString(verdict)))
        val limit = golden.limit ?: return
        val error = golden.error?.let { Format.digits(it) } ?: getString(R.string.unknown)
        val total = model.manifest.golden.size
        add(Views.body(this, getString(R.string.check_same, golden.same, total, error, Format.digits(limit))))
    }

    private fun showTimes(model: Loaded, times: Map<String, LatencyResult>, now: Conditions) {
        for ((role, name) in listOf(Role.PRUNED to R.string.pruned, Role.DENSE to R.string.dense)) {
            val entry = model.manifest.file(model.engine.format, role) ?: continue
            val time = times[entry.file] ?: continue
            val (p50, p90, mean) = listOf(time.p50Ms, time.p90Ms, time.meanMs).map { Format.milliseconds(it) }
            val count = time.samplesMs.size
            add(Views.body(this, getString(R.string.check_time_row, getString(name), p50, p90, mean, count)))
        }
        times.values.firstNotNullOfOrNull { it.whyInvalid }?.let {
            add(Views.notice(this, getString(R.string.check_invalid, it)))
        }
        val unknown = getString(R.string.unknown)
        val thermal = now.thermalStatus?.let { Conditions.THERMAL.getOrNull(it) } ?: unknown
        add(Views.quiet(this, getString(R.string.check_thermal, thermal)))
        val saver = if (now.batterySaver == true) R.string.check_saver_on else R.string.check_saver_off
        add(Views.quiet(this, getString(saver)))
        add(Views.quiet(this, getString(R.string.check_battery, now.battery ?: unknown)))
    }

    private fun add(view: View) = find<LinearLayout>(R.id.results).addView(view)

    private fun step(text: String, share: Double) {
        find<TextView>(R.id.step).text = text
        find<ProgressBar>(R.id.progress).progress = (1000 * share).toInt()
    }

    private fun buttons() {
        find<View>(R.id.quick).isEnabled = !running
        find<View>(R.id.full).isEnabled = !running
        find<View>(R.id.stop).visibility = if (running) View.VISIBLE else View.GONE
        find<View>(R.id.progress).visibility = if (running) View.VISIBLE else View.INVISIBLE
        find<View>(R.id.share_result).visibility = if (result != null && !running) View.VISIBLE else View.GONE
    }

    private fun <T : View> find(id: Int): T = findViewById(id)
}
