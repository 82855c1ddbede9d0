package org.dap.core

import kotlin.math.abs
import kotlin.math.exp

/** Place of the largest value, the first of several; of the first that is not a number, as numpy has it. */
fun argmax(values: FloatArray): Int {
    var best = 0
    for (i in values.indices) {
        if (values[i].isNaN()) return i
        if (values[i] > values[best]) best = i
    }
    return best
}

/** Places of the `count` largest, the largest first; of equal ones the first first. What is no number comes last. */
fun best(values: FloatArray, count: Int): List<Int> {
    val keys = values.map { if (it.isNaN()) Float.NEGATIVE_INFINITY else it }
    return values.indices.sortedWith(Comparator { a, b ->
        if (keys[a] == keys[b]) a - b else keys[b].compareTo(keys[a])
    }).take(count)
}

/** Probabilities of logits. */
fun softmax(logits: FloatArray): FloatArray {
    val largest = logits.maxOrNull() ?: return logits
    val powers = DoubleArray(logits.size) { exp((logits[it] - largest).toDouble()) }
    val sum = powers.sum()
    return FloatArray(logits.size) { (powers[it] / sum).toFloat() }
}

/** Largest absolute difference; null for logits that are no numbers, or of another shape. */
fun largestDifference(found: List<FloatArray>, expected: List<DoubleArray>): Double? {
    if (found.size != expected.size) return null
    var largest = 0.0
    for ((row, other) in found.zip(expected)) {
        if (row.size != other.size) return null
        for (i in row.indices) {
            if (row[i].isNaN() || row[i].isInfinite()) return null
            largest = maxOf(largest, abs(row[i] - other[i]))
        }
    }
    return largest
}

/** Share of the rows whose largest logit is the label's; a row in which something is no number is wrong. */
fun top1(logits: List<FloatArray>, labels: List<Int>): Double =
    logits.indices.count { logits[it].all { x -> !x.isNaN() && !x.isInfinite() } && argmax(logits[it]) == labels[it] } /
        labels.size.toDouble()

/** Whether a model computes here what it computes where it was made. */
class GoldenCheck(
    /** found here */
    val logits: List<FloatArray>,
    /** null where nobody knows them */
    val expected: List<DoubleArray>?,
    /** largest difference; null without expected ones, or if some are no numbers */
    val error: Double?,
    val limit: Double?,
    /** pictures with the expected class in front */
    val same: Int,
) {
    enum class Verdict { GOOD, BAD, UNKNOWN }

    val verdict: Verdict
        get() = when {
            limit == null -> Verdict.UNKNOWN
            error == null || error > limit -> Verdict.BAD
            else -> Verdict.GOOD
        }

    companion object {
        /** Hold logits against those that the manifest has of the artifact. */
        fun of(manifest: Manifest, file: String, found: List<FloatArray>): GoldenCheck {
            val expected = manifest.golden.mapNotNull { it.artifacts[file] }
            val share = manifest.goldenShare?.get(file)
            if (expected.isEmpty() || expected.size != manifest.golden.size || share == null) {
                return GoldenCheck(found, null, null, null, 0)
            }
            val largest = expected.maxOf { row -> row.maxOf { abs(it) } }
            val same = found.indices.count { i ->
                val row = expected.getOrNull(i) ?: return@count false
                argmax(found[i]) == argmax(FloatArray(row.size) { row[it].toFloat() })
            }
            return GoldenCheck(found, expected, largestDifference(found, expected), share * largest, same)
        }
    }
}
