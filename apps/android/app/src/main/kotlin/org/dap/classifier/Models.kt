package org.dap.classifier

import android.content.Context
import java.io.FileInputStream
import java.io.IOException
import java.nio.MappedByteBuffer
import java.nio.channels.FileChannel
import java.util.concurrent.ExecutorService
import java.util.concurrent.Executors
import org.dap.core.ArtifactFile
import org.dap.core.Fault
import org.dap.core.GoldenCheck
import org.dap.core.LatencyResult
import org.dap.core.MANIFEST
import org.dap.core.Manifest
import org.dap.core.Program
import org.dap.core.Refused
import org.dap.core.ResizeRule
import org.dap.core.Role
import org.dap.core.rgb
import org.dap.core.sha256Of
import org.dap.engine.LiteRt
import org.dap.engine.NoRuntime

/** The model in this app, loaded: what stands in assets/model, and nothing else. */
class Loaded(
    val manifest: Manifest,
    val rule: ResizeRule,
    val engine: LiteRt,
    /** pruned, and dense if there is one */
    val programs: Map<Role, Program>,
    /** RGB of the golden pictures */
    val pictures: List<ByteArray>,
    val golden: GoldenCheck,
) {
    /** of a short look at both; null until it was taken */
    @Volatile var times: Map<Role, LatencyResult>? = null

    fun file(role: Role): ArtifactFile = manifest.file(engine.format, role)!!
}

/** The model cannot be used here; the message is a sentence for whoever holds the phone. */
class Unusable(message: String) : Exception(message)

object Models {
    /** As targets/__init__.py has it for phones. */
    const val THREADS = 2

    /** All that computes runs there, one after the other: a program is for one thread at a time. */
    val worker: ExecutorService = Executors.newSingleThreadExecutor()

    private const val FOLDER = "model"
    private var loaded: Loaded? = null

    /** On the worker. What was loaded once stays. Throws Unusable. */
    fun load(context: Context): Loaded = loaded ?: try {
        read(context).also { loaded = it }
    } catch (error: NoRuntime) {
        throw Unusable(context.getString(R.string.no_runtime, error.message))
    } catch (error: Fault) {
        throw Unusable(context.getString(R.string.no_model, error.message))
    } catch (error: Refused) {
        throw Unusable(context.getString(R.string.no_model, error.message))
    } catch (error: OutOfMemoryError) {
        throw Unusable(context.getString(R.string.no_runtime, context.getString(R.string.memory_full)))
    }

    private fun read(context: Context): Loaded {
        val manifest = Manifest.read(bytes(context, MANIFEST))
        val rule = ResizeRule.of(manifest.input)
        val engine = LiteRt()
        val pruned = manifest.file(engine.format, Role.PRUNED)
            ?: throw Fault("$MANIFEST names no model that this app can run. Deploy one with TARGET=android")
        val programs = LinkedHashMap<Role, Program>()
        programs[Role.PRUNED] = engine.load(mapped(context, pruned), THREADS)
        val dense = manifest.file(engine.format, Role.DENSE)
        if (dense != null) programs[Role.DENSE] = engine.load(mapped(context, dense), THREADS)
        val pictures = manifest.golden.map { golden ->
            val content = bytes(context, golden.file)
            if (sha256Of(content) != golden.sha256) throw Fault("${golden.file} is damaged (its checksum differs)")
            val picture = try {
                Pictures.decode(content).pixels
            } catch (error: NoPicture) {
                throw Fault("${golden.file} is no picture that this phone can read")
            }
            if (picture.width != manifest.input.width || picture.height != manifest.input.height) {
                throw Fault("${golden.file} has not the model's size")
            }
            rgb(picture)
        }
        val program = programs.getValue(Role.PRUNED)
        val golden = GoldenCheck.of(manifest, pruned.file, pictures.map { program.logits(it) })
        return Loaded(manifest, rule, engine, programs, pictures, golden)
    }

    private fun bytes(context: Context, file: String): ByteArray = try {
        context.assets.open("$FOLDER/$file").use { it.readBytes() }
    } catch (error: IOException) {
        throw Fault("$file is missing in this app; build it again")
    }

    private fun mapped(context: Context, entry: ArtifactFile): MappedByteBuffer {
        if (sha256Of(bytes(context, entry.file)) != entry.sha256) {
            throw Fault("${entry.file} is damaged (its checksum differs)")
        }
        try {
            context.assets.openFd("$FOLDER/${entry.file}").use { place ->
                FileInputStream(place.fileDescriptor).channel.use { channel ->
                    return channel.map(FileChannel.MapMode.READ_ONLY, place.startOffset, place.declaredLength)
                }
            }
        } catch (error: IOException) {
            throw Fault("${entry.file} is compressed in this app, or missing; build it again")
        }
    }
}
