package org.dap.classifier

import android.app.Activity
import android.os.Bundle
import android.widget.LinearLayout
import org.dap.core.Check
import org.dap.core.Format
import org.dap.core.GoldenCheck
import org.dap.core.Measured
import org.dap.core.Role

/** The model's card: what the manifest says of it, and what runs it here. */
class CardActivity : Activity() {
    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        setContentView(R.layout.card)
        Models.worker.execute {
            try {
                val model = Models.load(this)
                runOnUiThread { show(model) }
            } catch (error: Unusable) {
                runOnUiThread { content().addView(Views.notice(this, error.message.orEmpty())) }
            }
        }
    }

    private fun content(): LinearLayout = findViewById(R.id.content)

    private fun show(model: Loaded) {
        val (manifest, engine, file) = Triple(model.manifest, model.engine, model.file(Role.PRUNED))
        content().removeAllViews()
        if (engine.isForProofs) content().addView(Views.notice(this, getString(R.string.proofs, engine.version)))
        content().addView(Views.title(this, getString(R.string.card_facts)))
        val unknown = getString(R.string.not_measured)
        fact(R.string.card_model, manifest.model)
        fact(R.string.card_dataset, manifest.dataset)
        fact(R.string.card_classes, manifest.labels.size.toString())
        fact(R.string.card_sees, getString(R.string.card_pixels, manifest.input.width, manifest.input.height))
        val size = Format.bytes(file.sizeBytes.toDouble())
        fact(R.string.card_file, getString(R.string.card_file_value, file.precision, size))
        manifest.params?.let { fact(R.string.card_params, Format.count(it.toDouble())) }
        fact(R.string.card_top1, file.measured?.top1?.let { Format.percent(it / 100) } ?: unknown)
        fact(R.string.card_runs_on, getString(R.string.card_runs_value, engine.runtime, engine.version, Models.THREADS))
        fact(R.string.card_golden, golden(model.golden))
        budget(file.measured)
        content().addView(Views.title(this, getString(R.string.card_origin)))
        fact(R.string.card_file, file.file)
        fact(R.string.card_sha256, file.sha256)
        fact(R.string.card_target, manifest.target)
        val tools = manifest.tools.orEmpty().map { "${it.key} ${it.value}" }
        fact(R.string.card_tools, tools.joinToString(", ").ifEmpty { unknown })
        content().addView(Views.title(this, getString(R.string.card_classes)))
        content().addView(Views.body(this, manifest.labels.joinToString("\n") { Format.label(it) }))
    }

    private fun fact(name: Int, value: String) {
        content().addView(Views.quiet(this, getString(name)))
        content().addView(Views.body(this, value))
    }

    private fun golden(check: GoldenCheck): String = getString(
        when (check.verdict) {
            GoldenCheck.Verdict.GOOD -> R.string.check_good
            GoldenCheck.Verdict.BAD -> R.string.check_bad
            GoldenCheck.Verdict.UNKNOWN -> R.string.check_unknown
        },
    )

    private fun budget(measured: Measured?) {
        val title = when (measured?.verdict) {
            "pass" -> R.string.card_budget_met
            "fail" -> R.string.card_budget_missed
            else -> R.string.card_budget_unknown
        }
        content().addView(Views.title(this, getString(title)))
        val checks = measured?.checks.orEmpty()
        if (checks.isEmpty()) return content().addView(Views.quiet(this, getString(R.string.card_nobody)))
        for (check in checks) content().addView(Views.body(this, line(check)))
        val runtime = measured?.runtime ?: return
        val device = measured.device
        content().addView(
            Views.quiet(
                this,
                if (device == null) getString(R.string.card_measured, runtime)
                else getString(R.string.card_measured_on, device, runtime),
            ),
        )
    }

    private fun line(check: Check): String {
        val sign = when (check.verdict) {
            "pass" -> "✓"
            "fail" -> "✗"
            else -> "–"
        }
        val (name, show) = CHECKS[check.name] ?: (check.name to Format::digits)
        val value = check.value?.let { show(it) } ?: getString(R.string.not_measured)
        val relation = if ("_min" in check.name) "≥" else "≤"
        return getString(R.string.check_row, sign, name, value, relation, show(check.limit))
    }

    private companion object {
        /** A budget's key: how it is called and shown; as in apps/web/src/app/card.ts. */
        val CHECKS: Map<String, Pair<String, (Double) -> String>> = mapOf(
            "golden" to Pair("Largest golden logit error", Format::digits),
            "golden_on_device" to Pair("The same between machines", Format::digits),
            "top1_min" to Pair("Right answers") { Format.percent(it) },
            "top1_share_min" to Pair("Right answers kept by the export") { Format.percent(it) },
            "top1_drop_max_points" to Pair("Lost against dense") { "${Format.digits(it)} points" },
            "latency_p50_ms_max" to Pair("Time, p50", Format::milliseconds),
            "latency_p90_ms_max" to Pair("Time, p90", Format::milliseconds),
            "latency_asked_ms_max" to Pair("Time asked for, + 10 %", Format::milliseconds),
            "latency_ratio_max" to Pair("Time against dense") { "${Format.digits(it)} ×" },
            "size_mb_max" to Pair("Size") { Format.bytes(1e6 * it) },
            "memory_mb_max" to Pair("Peak memory") { Format.bytes(1e6 * it) },
            "parity_psnr_db_min" to Pair("Parity (PSNR)") { "${Format.digits(it)} dB" },
            "parity_psnr_db_min_reduced" to Pair("Parity (PSNR)") { "${Format.digits(it)} dB" },
            "top1_agreement_min" to Pair("Same class as the model") { Format.percent(it) },
        )
    }
}
