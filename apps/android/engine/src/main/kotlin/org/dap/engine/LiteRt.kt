package org.dap.engine

import java.io.File
import java.io.FileInputStream
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.channels.FileChannel
import org.dap.core.Engine
import org.dap.core.Program
import org.dap.core.Refused
import org.tensorflow.lite.DataType
import org.tensorflow.lite.Interpreter
import org.tensorflow.lite.TensorFlowLite

/** The runtime itself is not here. */
class NoRuntime(message: String) : Exception(message)

/**
 * TFLite files by LiteRT's Interpreter on the processor, with XNNPACK. LiteRT 2 has no other delegate for this API; its
 * graphics processor is not used, and nothing here says that it is.
 */
class LiteRt : Engine {
    override val format = "tflite"

    override val version: String = try {
        TensorFlowLite.runtimeVersion()
    } catch (error: UnsatisfiedLinkError) {
        throw NoRuntime("LiteRT's library does not load: ${error.message}")
    } catch (error: IllegalStateException) { // its own words for the same
        throw NoRuntime("LiteRT's library does not load: ${error.message}")
    }

    /** The library that this app is built with where LiteRT 2 cannot be had; see apps/android/toolchain.py. */
    val isForProofs = version == PROOFS

    override val untimed = if (isForProofs) "TFLite $version stands in for LiteRT 2, and is slower" else null

    override val runtime = if (isForProofs) "TFLite" else "LiteRT"

    override fun load(file: File, threads: Int): Program = try {
        FileInputStream(file).use { stream ->
            load(stream.channel.map(FileChannel.MapMode.READ_ONLY, 0, file.length()), threads)
        }
    } catch (error: IOException) {
        throw Refused("${file.name} cannot be read: ${error.message}")
    }

    /** model: mapped, or direct; it must stay as it is. Throws Refused. */
    fun load(model: ByteBuffer, threads: Int): Program {
        val interpreter = try {
            Interpreter(model, Interpreter.Options().setNumThreads(threads).setUseXNNPACK(true))
        } catch (error: IllegalArgumentException) {
            throw Refused("$runtime $version does not take it: ${error.message}")
        } catch (error: IllegalStateException) {
            throw Refused("$runtime $version does not take it: ${error.message}")
        }
        return try {
            Loaded(interpreter)
        } catch (refused: Refused) {
            interpreter.close()
            throw refused
        }
    }

    private inner class Loaded(private val interpreter: Interpreter) : Program {
        private val input: ByteBuffer
        private val output: ByteBuffer

        init {
            val (given, made) = interpreter.getInputTensor(0) to interpreter.getOutputTensor(0)
            val shape = given.shape()
            val fits = given.dataType() == DataType.FLOAT32 && made.dataType() == DataType.FLOAT32 &&
                shape.size == 4 && shape[0] == 1 && shape[3] == 3
            if (!fits) throw Refused("its input is ${given.dataType()} ${shape.toList()}, not float32 (1, H, W, 3)")
            input = ByteBuffer.allocateDirect(given.numBytes()).order(ByteOrder.nativeOrder())
            output = ByteBuffer.allocateDirect(made.numBytes()).order(ByteOrder.nativeOrder())
        }

        override fun prepare(picture: ByteArray) {
            if (picture.size * 4 != input.capacity()) throw Refused("it takes pictures of another size")
            val floats = input.duplicate().order(ByteOrder.nativeOrder()).asFloatBuffer()
            for (value in picture) floats.put((value.toInt() and 255).toFloat())
        }

        override fun run(): FloatArray {
            input.rewind()
            output.rewind()
            try {
                interpreter.run(input, output)
            } catch (error: IllegalArgumentException) {
                throw Refused("$runtime $version does not run it: ${error.message}")
            } catch (error: IllegalStateException) {
                throw Refused("$runtime $version does not run it: ${error.message}")
            }
            output.rewind()
            return FloatArray(output.capacity() / 4).also { output.asFloatBuffer().get(it) }
        }

        override fun close() = interpreter.close()
    }

    private companion object {
        const val PROOFS = "2.14.0"
    }
}
