package org.dap.core

import java.io.File

/** What runs artifacts of one format. */
interface Engine {
    /** a key of FORMATS in targets/formats.py */
    val format: String
    val runtime: String
    val version: String

    /** Why its time is not the product's; null if it is. */
    val untimed: String?

    /** Throws Refused for what is no sound artifact. */
    fun load(file: File, threads: Int): Program
}

/** A loaded artifact. */
interface Program : AutoCloseable {
    /** Take RGB (H, W, 3) 0..255; not timed. */
    fun prepare(picture: ByteArray)

    /** One inference of what was prepared; logits. Throws Refused. */
    fun run(): FloatArray

    fun logits(picture: ByteArray): FloatArray {
        prepare(picture)
        return run()
    }
}

/** The runtime does not load an artifact, or does not run it. */
class Refused(message: String) : Exception(message)

/** What a device says of itself. */
interface Host {
    fun describe(): Description

    fun conditions(): Conditions

    /** Why a time that was taken since `begin` does not count, beside heat and battery saver; null if nothing is. */
    fun disturbed(): String? = null
}

fun interface Progress {
    fun tell(what: String, done: Int, total: Int)
}

private const val MEMORY_INFERENCES = 3

/**
 * Do the job whose files are in the folder, as `run` in targets/devices/measure.py does. An artifact that the runtime
 * refuses is a result; one that it was to be compared with is left out then. Throws Fault.
 */
fun work(job: Job, folder: File, engine: Engine, host: Host, progress: Progress): DeviceResult {
    val name = job.files[0]
    val device = host.describe()
    val sha256 = sha256Of(File(folder, name))
    return try {
        worked(job, folder, engine, host, device, sha256, progress)
    } catch (refused: Refused) {
        DeviceResult(job.id, name, sha256, device, job.threads, "", "", refused = refused.message)
    }
}

private fun worked(
    job: Job,
    folder: File,
    engine: Engine,
    host: Host,
    device: Description,
    sha256: String,
    progress: Progress,
): DeviceResult {
    val name = job.files[0]
    val unmeasured = LinkedHashMap<String, String>()
    val first = job.pictures(folder, GOLDEN).firstOrNull()
    if ((job.protocol != null || job.memory) && first == null) throw Fault("what is timed needs a golden picture")
    progress.tell("loading", 0, job.files.size)
    // First of all, so that nothing else is in this process's memory yet.
    val measured = job.memory && device.emulated == null
    val peakMb = if (measured) memoryMb(engine, File(folder, name), job.threads, first!!) else null
    if (measured && peakMb == null) unmeasured[MEMORY] = "Android does not tell a process's peak memory here"
    val programs = LinkedHashMap<String, Program>()
    try {
        for ((i, file) in job.files.withIndex()) {
            try {
                programs[file] = engine.load(File(folder, file), job.threads)
                if (first != null) programs.getValue(file).logits(first)
            } catch (refused: Refused) {
                if (file == name) throw refused
                programs.remove(file)?.close()
                unmeasured[file] = refused.message.orEmpty()
            }
            progress.tell("loading", i + 1, job.files.size)
        }
        val program = programs.getValue(name)
        val golden = logits(program, job.pictures(folder, GOLDEN), job.golden.size, "golden", progress)
        val rows = logits(program, job.pictures(folder, IMAGES), job.labels.size, "images", progress)
        val before = host.conditions()
        val times = if (job.protocol == null) emptyMap() else {
            val protocol = if (device.emulated != null) Protocol.EMULATED else job.protocol
            time(programs, first!!, protocol) { seconds ->
                progress.tell("latency", minOf(seconds, protocol.seconds).toInt(), protocol.seconds.toInt())
            }
        }
        val after = host.conditions()
        val why = device.emulated?.let { "$it emulates this device" }
            ?: engine.untimed
            ?: host.disturbed()
            ?: Conditions.heldBack(before, after)
        return DeviceResult(
            job.id,
            name,
            sha256,
            device,
            job.threads,
            engine.runtime,
            engine.version,
            before = before,
            after = after,
            golden = golden,
            goldenError = if (job.golden.isEmpty()) null else largestDifference(golden, job.golden),
            logits = rows,
            top1 = if (job.labels.isEmpty()) null else top1(rows, job.labels),
            latency = if (why == null) times else times.mapValues { it.value.invalid(why) },
            peakMb = peakMb,
            unmeasured = unmeasured,
        )
    } finally {
        for (program in programs.values) program.close()
    }
}

private fun logits(
    program: Program,
    pictures: Sequence<ByteArray>,
    total: Int,
    what: String,
    progress: Progress,
): List<FloatArray> = pictures.mapIndexed { i, picture ->
    program.logits(picture).also { progress.tell(what, i + 1, total) }
}.toList()

/** Latency of programs side by side on one picture; its preparation is not counted. */
fun time(
    programs: Map<String, Program>,
    picture: ByteArray,
    protocol: Protocol,
    progress: (Double) -> Unit = {},
): Map<String, LatencyResult> {
    for (program in programs.values) program.prepare(picture)
    return measure(programs.mapValues { (_, program) -> { keep(program.run()) } }, protocol, progress)
}

/** An inference whose logits nobody looks at. */
private fun keep(@Suppress("UNUSED_PARAMETER") logits: FloatArray) = Unit

/**
 * What loading an artifact and some inferences add to this process's peak memory, MB of 1e6 bytes; the runtime's code
 * does not count. null where the system does not tell.
 */
private fun memoryMb(engine: Engine, file: File, threads: Int, picture: ByteArray): Double? {
    engine.version // the runtime's own code is loaded by that
    try {
        File("/proc/self/clear_refs").writeText("5")
    } catch (error: java.io.IOException) {
        return null // the peak stays where it was, and the growth would come out too small
    }
    val before = peakKb() ?: return null
    engine.load(file, threads).use { program -> repeat(MEMORY_INFERENCES) { program.logits(picture) } }
    return peakKb()?.let { (it - before) * 1024 / 1e6 }
}

private fun peakKb(): Long? = try {
    val status = File("/proc/self/status").readText()
    val at = status.indexOf("VmHWM:")
    if (at < 0) null else status.substring(at, status.indexOf('\n', at)).filter { it in '0'..'9' }.toLongOrNull()
} catch (error: java.io.IOException) {
    null
}
