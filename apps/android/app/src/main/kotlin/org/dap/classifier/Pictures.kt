package org.dap.classifier

import android.content.ContentResolver
import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.graphics.Matrix
import android.media.ExifInterface
import android.net.Uri
import java.io.ByteArrayInputStream
import java.io.IOException
import java.nio.ByteBuffer
import kotlin.math.max
import org.dap.core.MAX_BYTES
import org.dap.core.Pixels

/** What is no picture, or too large a one. message: a string resource */
class NoPicture(val text: Int) : Exception()

/** A photo's pixels, and what to show of it. */
class Photo(val pixels: Pixels, val preview: Bitmap)

object Pictures {
    /** Pixels that are decoded at most: four bytes each, twice for a moment. */
    private const val PIXELS_MAX = 50_000_000L
    private const val PREVIEW_SIDE = 1280
    private val TURNED = mapOf(
        ExifInterface.ORIENTATION_FLIP_HORIZONTAL to 2,
        ExifInterface.ORIENTATION_ROTATE_180 to 3,
        ExifInterface.ORIENTATION_FLIP_VERTICAL to 4,
        ExifInterface.ORIENTATION_TRANSPOSE to 5,
        ExifInterface.ORIENTATION_ROTATE_90 to 6,
        ExifInterface.ORIENTATION_TRANSVERSE to 7,
        ExifInterface.ORIENTATION_ROTATE_270 to 8,
    )

    /** Throws NoPicture. */
    fun read(resolver: ContentResolver, uri: Uri): Photo {
        val content = try {
            resolver.openInputStream(uri)?.use { it.readBytes() }
        } catch (error: IOException) {
            null
        } catch (error: SecurityException) { // the permission for it is gone
            null
        } ?: throw NoPicture(R.string.no_picture)
        if (content.size > MAX_BYTES) throw NoPicture(R.string.picture_too_large)
        return try {
            decode(content)
        } catch (error: OutOfMemoryError) {
            throw NoPicture(R.string.picture_too_large)
        }
    }

    /** Pixels as they stand in the file: in its own colours, and where it is transparent the colours below. */
    fun decode(content: ByteArray): Photo {
        val bounds = BitmapFactory.Options().apply { inJustDecodeBounds = true }
        BitmapFactory.decodeByteArray(content, 0, content.size, bounds)
        if (bounds.outWidth <= 0 || bounds.outHeight <= 0) throw NoPicture(R.string.no_picture)
        if (bounds.outWidth.toLong() * bounds.outHeight > PIXELS_MAX) throw NoPicture(R.string.picture_too_large)
        val options = BitmapFactory.Options().apply {
            inPreferredConfig = Bitmap.Config.ARGB_8888
            inPremultiplied = false
            inScaled = false
        }
        val bitmap = BitmapFactory.decodeByteArray(content, 0, content.size, options)
            ?: throw NoPicture(R.string.no_picture)
        if (bitmap.config != Bitmap.Config.ARGB_8888) throw NoPicture(R.string.no_picture) // 16 bits a colour
        val stored = ByteBuffer.allocate(bitmap.byteCount)
        bitmap.copyPixelsToBuffer(stored)
        val turned = TURNED[orientation(content)] ?: 1
        bitmap.isPremultiplied = true // or it could not be drawn
        val pixels = Stored(stored.array(), bitmap.width, bitmap.height, bitmap.rowBytes, turned)
        return Photo(pixels, preview(bitmap, turned))
    }

    /** To show: RGB (H, W, 3). */
    fun bitmap(picture: ByteArray, width: Int, height: Int): Bitmap {
        val pixels = IntArray(width * height) { i ->
            var pixel = 255
            for (colour in 0 until 3) pixel = pixel shl 8 or (picture[3 * i + colour].toInt() and 255)
            pixel
        }
        return Bitmap.createBitmap(pixels, width, height, Bitmap.Config.ARGB_8888)
    }

    private fun orientation(content: ByteArray): Int = try {
        ExifInterface(ByteArrayInputStream(content)).getAttributeInt(ExifInterface.TAG_ORIENTATION, 1)
    } catch (error: IOException) {
        1
    }

    private fun preview(bitmap: Bitmap, turned: Int): Bitmap {
        val scale = minOf(1f, PREVIEW_SIDE / max(bitmap.width, bitmap.height).toFloat())
        val matrix = Matrix().apply { postScale(scale, scale) }
        when (turned) {
            2 -> matrix.postScale(-1f, 1f)
            3 -> matrix.postRotate(180f)
            4 -> matrix.postScale(1f, -1f)
            5 -> {
                matrix.postRotate(90f)
                matrix.postScale(-1f, 1f)
            }
            6 -> matrix.postRotate(90f)
            7 -> {
                matrix.postRotate(270f)
                matrix.postScale(-1f, 1f)
            }
            8 -> matrix.postRotate(270f)
        }
        return Bitmap.createBitmap(bitmap, 0, 0, bitmap.width, bitmap.height, matrix, true)
    }
}

/** Bytes R, G, B, A of rows, turned as EXIF says (1 to 8) while they are read. */
private class Stored(
    private val bytes: ByteArray,
    private val across: Int,
    private val down: Int,
    private val rowBytes: Int,
    private val turned: Int,
) : Pixels {
    override val width = if (turned < 5) across else down
    override val height = if (turned < 5) down else across

    override fun rows(top: Int, count: Int, into: IntArray) {
        var out = 0
        for (y in top until top + count) {
            for (x in 0 until width) {
                val column = when (turned) {
                    2, 3 -> across - 1 - x
                    5, 6 -> y
                    7, 8 -> across - 1 - y
                    else -> x
                }
                val row = when (turned) {
                    3, 4 -> down - 1 - y
                    5, 8 -> x
                    6, 7 -> down - 1 - x
                    else -> y
                }
                val at = row * rowBytes + 4 * column
                into[out++] = (bytes[at].toInt() and 255 shl 16) or (bytes[at + 1].toInt() and 255 shl 8) or
                    (bytes[at + 2].toInt() and 255)
            }
        }
    }
}
