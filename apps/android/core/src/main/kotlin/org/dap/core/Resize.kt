package org.dap.core

import kotlin.math.abs
import kotlin.math.ceil
import kotlin.math.floor
import kotlin.math.max
import kotlin.math.min

/**
 * Any picture to the size that the model takes, by the rule in the manifest (input.resize): what the pipeline's
 * evaluation does, to the bit; and what apps/web/src/app/resize.ts does. Reads the picture in strips.
 */
class ResizeRule(
    val shorterSide: Int,
    /** pictures are squeezed into a square */
    val squeezed: Boolean,
    val kernel: Kernel,
    val centreCrop: Int,
) {
    companion object {
        /** What of the manifest's rule is a parameter; the rest describes in words what stands here. Throws Fault. */
        fun of(input: InputSpec): ResizeRule {
            if (input.color != "RGB" || input.range != 0.0 to 255.0) {
                throw Fault("$MANIFEST: input is ${input.color} in ${input.range}, this app gives RGB from 0 to 255")
            }
            val rule = Fields(input.resize, Item(input.resize, "$MANIFEST: input.resize"))
            val name = rule["interpolation"].text()
            val size = rule["centre_crop"].count()
            if (size != input.height || size != input.width) {
                throw Fault("$MANIFEST: input.resize makes $size pixels of ${input.height} x ${input.width}")
            }
            val shorter = rule["shorter_side"].count()
            if (shorter < size) throw Fault("$MANIFEST: input.resize cuts $size pixels out of $shorter")
            return ResizeRule(
                shorter,
                rule["longer_side"].text() == "shorter_side",
                Kernel.values().find { it.name.lowercase() == name }
                    ?: throw Fault("this app does not know the interpolation ${shown(name)}"),
                size,
            )
        }
    }
}

enum class Kernel(val reach: Double) {
    BILINEAR(1.0) {
        override fun at(x: Double) = if (x < 1) 1 - x else 0.0
    },
    BICUBIC(2.0) {
        override fun at(x: Double): Double {
            val a = -0.5
            if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1
            return if (x < 2) (((x - 5) * x + 8) * x - 4) * a else 0.0
        }
    };

    /** x: distance, at least 0 */
    abstract fun at(x: Double): Double
}

/** Upright pixels 0xAARRGGBB, some rows at a time, as Android's Bitmap.getPixels has them. */
interface Pixels {
    val width: Int
    val height: Int

    /** count x width numbers into `into`. */
    fun rows(top: Int, count: Int, into: IntArray)
}

/** Side lengths of the whole picture once resized, and where the part lies that is kept. */
class Plan(width: Int, height: Int, rule: ResizeRule) {
    val wide = side(width, height, rule)
    val tall = side(height, width, rule)
    val left = halfToEven((wide - rule.centreCrop) / 2.0)
    val top = halfToEven((tall - rule.centreCrop) / 2.0)

    private fun side(mine: Int, other: Int, rule: ResizeRule): Int {
        if (rule.squeezed || mine <= other) return rule.shorterSide
        val long = rule.shorterSide.toLong() * mine / other.toDouble()
        return min(long, Int.MAX_VALUE.toDouble()).toInt()
    }

    private fun halfToEven(value: Double) = Math.rint(value).toInt()
}

/** RGB (H, W, 3) of a picture as it is, for what has the model's size already. */
fun rgb(source: Pixels): ByteArray {
    val pixels = IntArray(source.width * source.height)
    source.rows(0, source.height, pixels)
    return ByteArray(3 * pixels.size) { (pixels[it / 3] shr 16 - 8 * (it % 3)).toByte() }
}

private const val ONE = 1 shl 22
private const val STRIP_PIXELS = 1 shl 18

/** RGB (size, size, 3) of a picture. */
fun resize(source: Pixels, rule: ResizeRule): ByteArray {
    val (width, height) = source.width to source.height
    val plan = Plan(width, height, rule)
    val size = rule.centreCrop
    val across = Taps(width, plan.wide, plan.left, size, rule.kernel)
    val down = Taps(height, plan.tall, plan.top, size, rule.kernel)
    // As Pillow: what is far higher than wide is narrowed along y first.
    val rowsFirst = plan.tall < height && height - plan.tall > 2L * (width - plan.wide)
    val (first, last) = down.from[0] to down.to[size - 1]
    val strip = max(1, min(STRIP_PIXELS / width, last - first))
    val pixels = IntArray(strip * width)
    val pass = if (rowsFirst) RowsFirst(across, down, width, size) else ColumnsFirst(across, down, first, last, size)
    var row = first
    while (row < last) {
        val count = min(strip, last - row)
        source.rows(row, count, pixels)
        pass.take(pixels, row, count, width)
        row += count
    }
    return pass.result()
}

private interface Pass {
    fun take(pixels: IntArray, row: Int, count: Int, width: Int)

    fun result(): ByteArray
}

/** Along x as the rows come, then along y. */
private class ColumnsFirst(
    private val across: Taps,
    private val down: Taps,
    private val first: Int,
    last: Int,
    private val size: Int,
) : Pass {
    private val narrowed = ByteArray((last - first) * size * 3)

    override fun take(pixels: IntArray, row: Int, count: Int, width: Int) {
        for (i in 0 until count) {
            var out = (row - first + i) * size * 3
            for (x in 0 until size) {
                var red = HALF
                var green = HALF
                var blue = HALF
                var weight = x * across.stride
                for (place in i * width + across.from[x] until i * width + across.to[x]) {
                    val w = across.weights[weight++].toLong()
                    val pixel = pixels[place]
                    red += w * (pixel shr 16 and 255)
                    green += w * (pixel shr 8 and 255)
                    blue += w * (pixel and 255)
                }
                narrowed[out++] = byte(red)
                narrowed[out++] = byte(green)
                narrowed[out++] = byte(blue)
            }
        }
    }

    override fun result(): ByteArray {
        val line = size * 3
        val out = ByteArray(size * line)
        val sums = LongArray(line)
        for (y in 0 until size) {
            sums.fill(HALF)
            for (row in down.from[y] until down.to[y]) {
                val weight = down.weights[y * down.stride + row - down.from[y]].toLong()
                val begin = (row - first) * line
                for (i in 0 until line) sums[i] += weight * (narrowed[begin + i].toInt() and 255)
            }
            for (i in 0 until line) out[y * line + i] = byte(sums[i])
        }
        return out
    }
}

/** Along y as the rows come, in the columns that matter, then along x. */
private class RowsFirst(
    private val across: Taps,
    private val down: Taps,
    private val width: Int,
    private val size: Int,
) : Pass {
    private val left = across.from[0]
    private val line = (across.to[size - 1] - left) * 3
    private val sums = LongArray(size * line) { HALF }

    override fun take(pixels: IntArray, row: Int, count: Int, width: Int) {
        for (y in 0 until size) {
            for (r in max(down.from[y], row) until min(down.to[y], row + count)) {
                val weight = down.weights[y * down.stride + r - down.from[y]].toLong()
                var place = (r - row) * this.width + left
                var i = y * line
                while (i < (y + 1) * line) {
                    val pixel = pixels[place++]
                    sums[i++] += weight * (pixel shr 16 and 255)
                    sums[i++] += weight * (pixel shr 8 and 255)
                    sums[i++] += weight * (pixel and 255)
                }
            }
        }
    }

    override fun result(): ByteArray {
        val out = ByteArray(size * size * 3)
        for (y in 0 until size) {
            for (x in 0 until size) {
                for (colour in 0 until 3) {
                    var sum = HALF
                    for (i in across.from[x] until across.to[x]) {
                        val value = byte(sums[y * line + (i - left) * 3 + colour]).toInt() and 255
                        sum += across.weights[x * across.stride + i - across.from[x]].toLong() * value
                    }
                    out[(y * size + x) * 3 + colour] = byte(sum)
                }
            }
        }
        return out
    }
}

private const val HALF = (ONE / 2).toLong()

/** A sum of weighted bytes and a half as a byte, cut off to 0..255. */
private fun byte(sum: Long): Byte = (sum shr 22).coerceIn(0, 255).toByte()

/** Which inputs make each of the `kept` outputs along one axis, from output `first` on. */
private class Taps(inputs: Int, outputs: Int, first: Int, kept: Int, kernel: Kernel) {
    /** first input of each output, and one behind its last */
    val from = IntArray(kept)
    val to = IntArray(kept)
    val stride: Int

    /** of output i from i * stride on; multiples of 1, where 2^22 is one */
    val weights: IntArray

    init {
        val scale = inputs / outputs.toDouble()
        val stretch = max(scale, 1.0)
        if (inputs == outputs) {
            stride = 1
            weights = IntArray(kept) { ONE }
            for (i in 0 until kept) {
                from[i] = first + i
                to[i] = first + i + 1
            }
        } else {
            stride = ceil(2 * kernel.reach * stretch).toInt() + 2
            weights = IntArray(kept * stride)
            val row = DoubleArray(stride)
            for (i in 0 until kept) {
                val centre = (first + i + 0.5) * scale
                from[i] = max(0, floor(centre - kernel.reach * stretch).toInt())
                to[i] = min(inputs, ceil(centre + kernel.reach * stretch).toInt())
                var sum = 0.0
                for (j in 0 until to[i] - from[i]) {
                    row[j] = kernel.at(abs(from[i] + j - centre + 0.5) * (1 / stretch))
                    sum += row[j]
                }
                for (j in 0 until to[i] - from[i]) {
                    val weight = row[j] / sum * ONE
                    weights[i * stride + j] = (if (weight < 0) weight - 0.5 else weight + 0.5).toInt()
                }
            }
        }
    }
}
