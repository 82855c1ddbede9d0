package org.dap.core

import java.util.Locale
import kotlin.math.abs
import kotlin.math.roundToInt
import kotlin.math.roundToLong

/** Numbers as they are shown; as apps/web/src/app/format.ts. */
object Format {
    private const val MINUS = "\u2212"

    /** Three digits are what a measurement is worth. */
    fun milliseconds(value: Double) = "${threeDigits(value)} ms"

    fun bytes(value: Double): String = when {
        value < 1e6 -> "${(value / 1e3).roundToLong()} kB"
        else -> String.format(Locale.ROOT, if (value < 1e7) "%.2f MB" else "%.1f MB", value / 1e6)
    }

    fun count(value: Double): String = when {
        value < 1e3 -> value.roundToLong().toString()
        value < 1e6 -> "${threeDigits(value / 1e3)} k"
        else -> "${threeDigits(value / 1e6)} M"
    }

    fun percent(share: Double, digits: Int = 1): String = String.format(Locale.ROOT, "%.${digits}f %%", 100 * share)

    /** A change against `from`, in percent. */
    fun change(from: Double, to: Double): String {
        val share = (100 * (to / from - 1)).roundToInt()
        return if (share == 0) "the same" else "${if (share < 0) MINUS else "+"}${abs(share)} %"
    }

    fun points(from: Double, to: Double): String {
        if (abs(to - from) < 0.05) return "the same"
        return String.format(Locale.ROOT, "%s%.1f points", if (to < from) MINUS else "+", abs(to - from))
    }

    /** As a name of a class is read; data sets write them with underscores. */
    fun label(name: String) = name.replace('_', ' ')

    fun digits(value: Double): String = String.format(Locale.ROOT, "%.3g", value)

    private fun threeDigits(value: Double): String = when {
        value >= 100 -> value.roundToLong().toString()
        value >= 10 -> String.format(Locale.ROOT, "%.1f", value)
        else -> String.format(Locale.ROOT, "%.2f", value)
    }
}
