package org.dap.core

import java.util.Locale
import kotlin.math.exp
import kotlin.math.ln

/** The measuring protocol of targets/latency.py, with the same statistics. Names in results are the contract's. */
class Protocol(
    val name: String,
    /** length of the measured window; at most PATIENCE times that */
    val seconds: Double,
    /** of every callable; fewer stop early */
    val minSamples: Int,
    /** rounds that are not counted */
    val warmup: Int,
    /** rest before the measurement */
    val cooldownS: Double,
) {
    companion object {
        val FULL = Protocol("full", 60.0, 1024, 32, 10.0)
        val QUICK = Protocol("quick", 10.0, 128, 10, 1.0)

        /** Where something stands in for the device its time says nothing: a few inferences show that it runs. */
        val EMULATED = Protocol("emulated", 0.0, 1, 0, 0.0)
    }
}

/** A run that has not got its samples after this many times the asked duration stops: the device is too slow. */
private const val PATIENCE = 3.0
private const val EARLY_SAMPLES = 64

/** When one inference in ten takes this many times the median or longer, the phone did something else meanwhile. */
private const val SPREAD_MAX = 5.0

/** See LatencyResult in targets/latency.py. whyInvalid: null if it is valid */
class LatencyResult(
    val p5Ms: Double,
    val p50Ms: Double,
    val p90Ms: Double,
    val meanMs: Double,
    val p90BoundMs: Double,
    val seconds: Double,
    val whyInvalid: String?,
    val samplesMs: DoubleArray,
) {
    val valid get() = whyInvalid == null

    /** The same figures, not to be believed. */
    fun invalid(why: String) =
        LatencyResult(p5Ms, p50Ms, p90Ms, meanMs, p90BoundMs, seconds, whyInvalid ?: why, samplesMs)

    fun toJson(): Map<String, Any?> = linkedMapOf(
        "p5_ms" to p5Ms,
        "p50_ms" to p50Ms,
        "p90_ms" to p90Ms,
        "mean_ms" to meanMs,
        "p90_bound_ms" to p90BoundMs,
        "samples" to samplesMs.size,
        "seconds" to seconds,
        "valid" to valid,
        "why_invalid" to whyInvalid,
        "samples_ms" to samplesMs,
    )
}

/** Somebody does not want to wait for the rest. */
class Stopped : Exception("stopped")

/**
 * Run every callable in turn as the protocol says, one inference each (a, b, a, b, ...).
 *
 * progress: told the seconds that have been measured, now and then; what it takes is not timed; it may throw Stopped
 */
fun measure(
    callables: Map<String, () -> Unit>,
    protocol: Protocol,
    progress: (Double) -> Unit = {},
): Map<String, LatencyResult> {
    require(callables.isNotEmpty()) { "measure needs at least one callable" }
    progress(0.0)
    Thread.sleep((1000 * protocol.cooldownS).toLong())
    progress(0.0)
    for (round in 0 until protocol.warmup) for (inference in callables.values) inference()
    val samples = callables.values.map { it to ArrayList<Long>() }
    val begin = System.nanoTime()
    var elapsed = 0.0
    var rounds = 0
    val longest = PATIENCE * protocol.seconds
    while (rounds == 0 || elapsed < protocol.seconds || (rounds < protocol.minSamples && elapsed < longest)) {
        for ((inference, taken) in samples) {
            val start = System.nanoTime()
            inference()
            taken.add(System.nanoTime() - start)
        }
        rounds++
        elapsed = (System.nanoTime() - begin) / 1e9
        progress(elapsed)
    }
    return callables.keys.zip(samples).associate { (name, one) ->
        name to summarise(one.second.toLongArray(), elapsed, protocol.minSamples)
    }
}

/** Percentiles of the samples (at least one), and whether they can be trusted; the rules of targets/latency.py. */
fun summarise(samplesNs: LongArray, seconds: Double, minSamples: Int): LatencyResult {
    require(samplesNs.isNotEmpty()) { "a latency needs at least one sample" }
    val samples = DoubleArray(samplesNs.size) { samplesNs[it] / 1e6 }
    val sorted = samples.sortedArray()
    val (p5, p50, p90) = listOf(0.05, 0.5, 0.9).map { percentile(sorted, it) }
    val shortest = samplesNs.minOrNull()!!
    val why = when {
        shortest <= 0 -> "the clock showed $shortest ns for an inference"
        samples.size < minOf(minSamples, EARLY_SAMPLES) -> {
            val atLeast = if (minSamples > EARLY_SAMPLES) ", $EARLY_SAMPLES at least" else ""
            String.format(Locale.ROOT, "%d samples in %.1f s, %d needed%s", samples.size, seconds, minSamples, atLeast)
        }
        p90 > SPREAD_MAX * p50 -> String.format(
            Locale.ROOT,
            "p90 is %.1f times the median, at most %.0f allowed: the machine was busy",
            p90 / p50,
            SPREAD_MAX,
        )
        else -> null
    }
    val bound = if (samples.size >= minSamples) p90 else maxOf(p90, p90Bound(sorted))
    return LatencyResult(p5, p50, p90, samples.sum() / samples.size, bound, seconds, why, samples)
}

/** Linear between the two nearest samples, as numpy's default. */
fun percentile(sorted: DoubleArray, share: Double): Double {
    val place = (sorted.size - 1) * share
    val below = place.toInt()
    val above = minOf(below + 1, sorted.size - 1)
    return sorted[below] + (sorted[above] - sorted[below]) * (place - below)
}

/** Upper end of the one-sided 99 % confidence interval of the 90th percentile; the maximum if there are too few. */
private fun p90Bound(sorted: DoubleArray): Double {
    val n = sorted.size
    var logOfP = n * ln(0.1) // of P(Binomial(n, 0.9) = 0)
    var below = 0.0
    for (k in 0 until n) {
        below += exp(logOfP)
        if (below >= 0.99) return sorted[k]
        logOfP += ln((n - k) / (k + 1.0)) + ln(0.9 / 0.1)
    }
    return sorted[n - 1]
}
