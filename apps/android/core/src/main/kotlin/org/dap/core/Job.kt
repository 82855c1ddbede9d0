package org.dap.core

import java.io.File
import java.security.MessageDigest

/** A job and its result: the contract of targets/devices/job.py. Names in JSON are the contract's. */
const val JOB = "job.json"
const val RESULT = "result.json"
const val GOLDEN = "golden.u8"
const val IMAGES = "images.u8"
const val MEMORY = "memory"
private const val JOB_VERSION = 1L

class Job(
    val id: String,
    val format: String,
    /** artifacts in the folder, timed side by side; the first one is what is checked */
    val files: List<String>,
    val sha256: Map<String, String>,
    val threads: Int,
    val height: Int,
    val width: Int,
    val classes: Int,
    /** (G, C) */
    val golden: List<DoubleArray>,
    /** (N,) */
    val labels: List<Int>,
    /** null: nothing is timed */
    val protocol: Protocol?,
    val memory: Boolean,
) {
    companion object {
        /** Throws Fault. */
        fun read(content: ByteArray): Job = try {
            of(parseJson(content))
        } catch (error: Fault) {
            throw Fault("$JOB is missing or not whole (${error.message}); repeat the command")
        }

        /** The job in a folder, once every file of it is there and unchanged. Throws Fault naming one that is not. */
        fun read(folder: File): Job {
            val path = File(folder, JOB)
            if (!path.isFile) throw Fault("$JOB is missing or not whole (there is none); repeat the command")
            val job = read(path.readBytes())
            for ((name, sha256) in job.sha256) {
                val whole = sha256Of(File(folder, name)) == sha256
                if (!whole) throw Fault("$name did not arrive whole; repeat the command")
            }
            return job
        }

        private fun of(json: Any?): Job {
            val version = (json as? Map<*, *>)?.get("version")
            if (version != JOB_VERSION) throw Fault("version is ${shown(version)}, this app reads $JOB_VERSION")
            val top = Item(json, "")
            val fields = top.fields(
                listOf("version", "id", "format", "files", "sha256", "threads", "height", "width", "classes"),
                listOf("golden", "labels", "protocol", "memory"),
            )
            val given = top.plainMap()
            val job = Job(
                fields["id"].text(),
                fields["format"].text(),
                fields["files"].list { it.text() },
                fields["sha256"].map { it.text() },
                fields["threads"].count(),
                fields["height"].count(),
                fields["width"].count(),
                fields["classes"].count(),
                if ("golden" in given) fields["golden"].list { it.numbers() } else emptyList(),
                if ("labels" in given) fields["labels"].list { it.whole(0).toInt() } else emptyList(),
                fields["protocol"].orNull { protocolOf(it) },
                if ("memory" in given) fields["memory"].truth() else false,
            )
            for (name in job.files + job.sha256.keys) {
                val own = name in setOf("", ".", "..", JOB, RESULT)
                if (own || '/' in name || '\\' in name || !isPrintable(name)) {
                    throw Fault("${shown(name)} is no name of a job's file")
                }
            }
            val once = job.files.isNotEmpty() && job.files.toSet().size == job.files.size
            if (!once || !job.sha256.keys.containsAll(job.files)) {
                throw Fault("a job needs at least one artifact, each named once and with its checksum")
            }
            if (job.golden.any { it.size != job.classes }) throw Fault("golden must have ${job.classes} logits a row")
            if (job.labels.any { it >= job.classes }) throw Fault("labels must be from 0 to ${job.classes - 1}")
            return job
        }

        private fun protocolOf(item: Item): Protocol {
            val fields = item.fields(listOf("name", "seconds", "min_samples", "warmup", "cooldown_s"))
            val protocol = Protocol(
                fields["name"].text(),
                fields["seconds"].number(),
                fields["min_samples"].count(),
                fields["warmup"].whole(0).toInt(),
                fields["cooldown_s"].number(),
            )
            return if (protocol.seconds >= 0 && protocol.cooldownS >= 0) protocol else item.fault("no time is below 0")
        }
    }

    /** Pictures of golden.u8 or images.u8, RGB (H, W, 3), one by one. */
    fun pictures(folder: File, name: String): Sequence<ByteArray> = sequence {
        val count = if (name == GOLDEN) golden.size else labels.size
        if (count > 0) {
            File(folder, name).inputStream().buffered().use { stream ->
                for (i in 0 until count) {
                    val picture = ByteArray(height * width * 3)
                    var at = 0
                    while (at < picture.size) {
                        val read = stream.read(picture, at, picture.size - at)
                        if (read < 0) throw Fault("$name did not arrive whole; repeat the command")
                        at += read
                    }
                    yield(picture)
                }
            }
        }
    }
}

/** SHA-256 of a file; "" if there is none. */
fun sha256Of(file: File): String {
    if (!file.isFile) return ""
    val digest = MessageDigest.getInstance("SHA-256")
    file.inputStream().use { stream ->
        val buffer = ByteArray(1 shl 16)
        while (true) {
            val read = stream.read(buffer)
            if (read < 0) return hex(digest.digest())
            digest.update(buffer, 0, read)
        }
    }
}

/** What a device is; null: it does not tell. */
class Description(
    val device: String,
    val os: String,
    val cpu: String?,
    val cores: Int?,
    val arch: String?,
    /** by what, where the device is not a real one */
    val emulated: String?,
) {
    fun toJson(): Map<String, Any?> = linkedMapOf(
        "device" to device,
        "os" to os,
        "cpu" to cpu,
        "cores" to cores,
        "arch" to arch,
        "emulated" to emulated,
    )
}

/** What may slow a phone down; null: it does not tell. */
class Conditions(
    val temperatureC: Double?,
    val battery: String?,
    val batterySaver: Boolean?,
    /** PowerManager's thermal status, 0 (none) to 6 (shutdown); Android 10 and newer */
    val thermalStatus: Int?,
) {
    fun toJson(): Map<String, Any?> = linkedMapOf(
        "governor" to null,
        "temperature_c" to temperatureC,
        "throttled" to null,
        "battery" to battery,
        "battery_saver" to batterySaver,
    )

    companion object {
        val THERMAL = listOf("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")

        /** From here on a phone slows down. */
        private const val MODERATE = 2

        /** Why a time between these two does not count; null if nothing is known against it. */
        fun heldBack(before: Conditions, after: Conditions): String? {
            val worst = maxOf(before.thermalStatus ?: 0, after.thermalStatus ?: 0)
            val word = THERMAL[minOf(worst, THERMAL.size - 1)]
            if (worst >= MODERATE) return "the phone was too hot (thermal status $word) and slows down"
            if (before.batterySaver == true || after.batterySaver == true) return "its battery saver was on"
            return null
        }
    }
}

/** What one device found of one artifact; see DeviceResult in targets/devices/job.py. null, or empty: not measured. */
class DeviceResult(
    val job: String,
    val file: String,
    val sha256: String,
    val device: Description,
    val threads: Int,
    val runtime: String,
    val runtimeVersion: String,
    val refused: String? = null,
    val before: Conditions? = null,
    val after: Conditions? = null,
    val golden: List<FloatArray> = emptyList(),
    val goldenError: Double? = null,
    val logits: List<FloatArray> = emptyList(),
    val top1: Double? = null,
    val latency: Map<String, LatencyResult> = emptyMap(),
    val peakMb: Double? = null,
    val unmeasured: Map<String, String> = emptyMap(),
) {
    fun toJson(): Map<String, Any?> = linkedMapOf(
        "version" to 1,
        "job" to job,
        "file" to file,
        "sha256" to sha256,
        "device" to device.toJson(),
        "threads" to threads,
        "runtime" to runtime,
        "runtime_version" to runtimeVersion,
        "refused" to refused,
        "before" to (before?.toJson() ?: emptyMap()),
        "after" to (after?.toJson() ?: emptyMap()),
        "golden" to golden,
        "golden_error" to goldenError,
        "logits" to logits,
        "top1" to top1,
        "latency" to latency.mapValues { it.value.toJson() },
        "peak_mb" to peakMb,
        "unmeasured" to unmeasured,
    )

    /** Write it in one step. */
    fun write(path: File) {
        val partial = File(path.path + ".partial")
        partial.writeText(writeJson(toJson()) + "\n")
        if (!partial.renameTo(path)) throw java.io.IOException("$path cannot be written")
    }
}
