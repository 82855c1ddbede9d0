package org.dap.classifier

import android.view.View
import android.widget.LinearLayout
import org.dap.core.Format
import org.dap.core.LatencyResult
import org.dap.core.Role
import org.dap.core.summarise

/** What pruning bought: dense beside pruned, the time measured on this phone. */
object Bought {
    private const val WARMUP = 3
    private const val ROUNDS = 24

    /** On the worker: a short look at both in turn, once in the app's life. Throws Refused. */
    fun take(model: Loaded) {
        if (model.times != null || Role.DENSE !in model.programs) return
        val picture = model.pictures.firstOrNull() ?: return
        val times = model.programs.mapValues { LongArray(ROUNDS) }
        for (program in model.programs.values) program.prepare(picture)
        val begin = System.nanoTime()
        for (round in -WARMUP until ROUNDS) {
            for ((role, program) in model.programs) {
                val start = System.nanoTime()
                program.run()
                if (round >= 0) times.getValue(role)[round] = System.nanoTime() - start
            }
        }
        val seconds = (System.nanoTime() - begin) / 1e9
        model.times = times.mapValues { summarise(it.value, seconds, ROUNDS) }
    }

    /** Into a list of its own, which stays hidden without a dense model. */
    fun show(list: LinearLayout, model: Loaded) {
        list.removeAllViews()
        if (Role.DENSE !in model.programs) return
        val context = list.context
        val (dense, pruned) = model.file(Role.DENSE) to model.file(Role.PRUNED)
        list.visibility = View.VISIBLE
        list.addView(Views.title(context, context.getString(R.string.bought)))
        fun row(name: Int, gain: String, dense: String, pruned: String) {
            val text = context.getString(R.string.bought_row, context.getString(name), gain, dense, pruned)
            list.addView(Views.body(context, text))
        }
        val times = model.times
        if (times == null) {
            list.addView(Views.quiet(context, context.getString(R.string.bought_soon)))
        } else {
            val (slow, fast) = times.getValue(Role.DENSE).p50Ms to times.getValue(Role.PRUNED).p50Ms
            val factor = Format.digits(if (slow >= fast) slow / fast else fast / slow)
            val words = if (slow >= fast) R.string.faster else R.string.slower
            val gain = context.getString(words, factor)
            row(R.string.bought_time, gain, Format.milliseconds(slow), Format.milliseconds(fast))
        }
        val (large, small) = dense.sizeBytes.toDouble() to pruned.sizeBytes.toDouble()
        row(R.string.bought_size, Format.change(large, small), Format.bytes(large), Format.bytes(small))
        val (params, before) = model.manifest.params to model.manifest.paramsDense
        if (params != null && before != null) {
            val (now, was) = params.toDouble() to before.toDouble()
            row(R.string.bought_params, Format.change(was, now), Format.count(was), Format.count(now))
        }
        val (right, still) = dense.measured?.top1 to pruned.measured?.top1
        if (right != null && still != null) {
            val (was, now) = Format.percent(right / 100) to Format.percent(still / 100)
            row(R.string.bought_top1, Format.points(right, still), was, now)
        }
        times?.values?.firstNotNullOfOrNull(LatencyResult::whyInvalid)?.let {
            list.addView(Views.quiet(context, context.getString(R.string.bought_rough, it)))
        }
    }
}
