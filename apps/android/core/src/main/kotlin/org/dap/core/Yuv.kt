package org.dap.core

/** One plane of a camera's frame. */
class Plane(val bytes: ByteArray, val rowStride: Int, val pixelStride: Int)

/**
 * A camera's frame (YUV 4:2:0, full range, BT.601, as JPEG has it) as upright pixels 0xFFRRGGBB.
 *
 * degrees: clockwise turn that makes it upright: 0, 90, 180 or 270;  mirrored: left and right change places then
 */
class Frame(width: Int, height: Int, planes: List<Plane>, degrees: Int, mirrored: Boolean = false) : Pixels {
    override val width = if (degrees % 180 == 0) width else height
    override val height = if (degrees % 180 == 0) height else width
    val pixels = IntArray(width * height)

    init {
        val (luma, blue, red) = planes
        for (y in 0 until height) {
            var chroma = y / 2 * blue.rowStride
            var chromaRed = y / 2 * red.rowStride
            var bright = y * luma.rowStride
            for (x in 0 until width) {
                val value = luma.bytes[bright].toInt() and 255
                val u = (blue.bytes[chroma].toInt() and 255) - 128
                val v = (red.bytes[chromaRed].toInt() and 255) - 128
                bright += luma.pixelStride
                if (x % 2 == 1) {
                    chroma += blue.pixelStride
                    chromaRed += red.pixelStride
                }
                // factors of JFIF in multiples of 1 / 65536
                val r = clamp(value + (91881 * v + 32768 shr 16))
                val g = clamp(value - (22554 * u + 46802 * v + 32768 shr 16))
                val b = clamp(value + (116130 * u + 32768 shr 16))
                pixels[place(x, y, width, height, degrees, mirrored)] = (255 shl 24) or (r shl 16) or (g shl 8) or b
            }
        }
    }

    private fun place(x: Int, y: Int, width: Int, height: Int, degrees: Int, mirrored: Boolean): Int {
        val row = when (degrees) {
            0 -> y
            90 -> x
            180 -> height - 1 - y
            else -> width - 1 - x
        }
        val column = when (degrees) {
            0 -> x
            90 -> height - 1 - y
            180 -> width - 1 - x
            else -> y
        }
        return row * this.width + if (mirrored) this.width - 1 - column else column
    }

    private fun clamp(value: Int) = if (value < 0) 0 else if (value > 255) 255 else value

    override fun rows(top: Int, count: Int, into: IntArray) {
        System.arraycopy(pixels, top * width, into, 0, count * width)
    }
}
