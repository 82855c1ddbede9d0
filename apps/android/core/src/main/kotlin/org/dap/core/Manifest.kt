package org.dap.core

import java.security.MessageDigest
import java.util.regex.Pattern

/** manifest.json beside the model: all that this app knows of it. See targets/manifest.py. */
const val MANIFEST = "manifest.json"

private const val VERSION = 2L
private val SHA256 = Pattern.compile("[0-9a-f]{64}")

enum class Role { PRUNED, DENSE }

/** Of the input, and how to make it from a picture. */
class InputSpec(
    val height: Int,
    val width: Int,
    val color: String,
    val range: Pair<Double, Double>,
    /** as the manifest has it; ResizeRule.of reads what this app needs */
    val resize: Map<String, Any?>,
)

class ArtifactFile(
    /** path relative to the manifest's folder */
    val file: String,
    val format: String,
    val precision: String,
    val role: Role,
    val sizeBytes: Long,
    val sha256: String,
    val layout: String,
    val dtype: String,
    val minimumRuntime: String?,
    val measured: Measured?,
)

/** What the gate found, as far as the card shows it; nothing that it does not understand. */
class Measured(private val plain: Map<String, Any?>) {
    /** percent */
    val top1: Double? get() = (plain["top1"] as? Number)?.toDouble()
    val verdict: String get() = plain["verdict"] as? String ?: "not_measured"
    val runtime: String? get() = plain["runtime"] as? String
    val device: String? get() = (plain["device"] as? Map<*, *>)?.get("device") as? String

    val checks: List<Check>
        get() = (plain["checks"] as? List<*>).orEmpty().mapNotNull { one ->
            val check = one as? Map<*, *> ?: return@mapNotNull null
            val name = check["name"] as? String ?: return@mapNotNull null
            val limit = (check["limit"] as? Number)?.toDouble() ?: return@mapNotNull null
            val verdict = check["verdict"] as? String ?: return@mapNotNull null
            Check(name, limit, (check["value"] as? Number)?.toDouble(), verdict)
        }
}

/** One line of a budget. value: null: not measured */
class Check(val name: String, val limit: Double, val value: Double?, val verdict: String)

/** A picture of the input's size, with its logits. */
class Golden(
    val file: String,
    val sha256: String,
    /** of the float32 PyTorch model */
    val model: DoubleArray,
    /** of every pruned artifact, by file, where it was made */
    val artifacts: Map<String, DoubleArray>,
)

class Manifest(
    val model: String,
    val dataset: String,
    val target: String,
    val labels: List<String>,
    val input: InputSpec,
    val files: List<ArtifactFile>,
    val golden: List<Golden>,
    val goldenShare: Map<String, Double>?,
    val params: Long?,
    val paramsDense: Long?,
    val tools: Map<String, String>?,
) {
    /** The file of a format in a role. */
    fun file(format: String, role: Role): ArtifactFile? = files.firstOrNull { it.format == format && it.role == role }

    companion object {
        /** Throws Fault: `manifest.json: where: what`. */
        fun read(content: ByteArray): Manifest = try {
            of(parseJson(content))
        } catch (error: Fault) {
            throw Fault("$MANIFEST: ${error.message}")
        }

        private fun of(json: Any?): Manifest {
            val version = (json as? Map<*, *>)?.get("manifest_version")
            if (version != VERSION) throw Fault("manifest_version is ${shown(version)}, this app reads $VERSION")
            val top = Item(json, "")
            val fields = top.fields(
                listOf("manifest_version", "model", "dataset", "target", "labels", "input", "files"),
                listOf("golden", "golden_share", "params", "params_dense", "tools"),
            )
            val given = top.plainMap()
            val manifest = Manifest(
                model = fields["model"].text(),
                dataset = fields["dataset"].text(),
                target = fields["target"].text(),
                labels = fields["labels"].list { it.text() },
                input = inputOf(fields["input"]),
                files = fields["files"].list { fileOf(it) },
                golden = if ("golden" in given) fields["golden"].list { goldenOf(it) } else emptyList(),
                goldenShare = fields["golden_share"].orNull { share -> share.map { it.number() } },
                params = fields["params"].orNull { it.whole() },
                paramsDense = fields["params_dense"].orNull { it.whole() },
                tools = fields["tools"].orNull { tools -> tools.map { it.text() } },
            )
            agree(manifest)
            return manifest
        }

        private fun inputOf(item: Item): InputSpec {
            val fields = item.fields(listOf("height", "width", "color", "range", "resize"))
            val range = fields["range"].numbers()
            if (range.size != 2 || range[0] >= range[1]) item.fault("range must be two numbers that rise")
            return InputSpec(
                fields["height"].count(),
                fields["width"].count(),
                fields["color"].text(),
                range[0] to range[1],
                fields["resize"].plainMap(),
            )
        }

        private fun fileOf(item: Item): ArtifactFile {
            val fields = item.fields(
                listOf("file", "format", "precision", "role", "size_bytes", "sha256", "layout", "dtype"),
                listOf("minimum_runtime", "measured"),
            )
            val role = fields["role"].text()
            return ArtifactFile(
                file = beside(fields["file"]),
                format = fields["format"].text(),
                precision = fields["precision"].text(),
                role = Role.values().find { it.name.lowercase() == role && role == role.lowercase() }
                    ?: item.fault("role is ${shown(role)}, not one of pruned, dense"),
                sizeBytes = fields["size_bytes"].whole(0),
                sha256 = checksum(fields["sha256"]),
                layout = fields["layout"].text(),
                dtype = fields["dtype"].text(),
                minimumRuntime = fields["minimum_runtime"].orNull { it.text() },
                measured = fields["measured"].orNull { Measured(it.plainMap()) },
            )
        }

        private fun goldenOf(item: Item): Golden {
            val fields = item.fields(listOf("file", "sha256", "model", "artifacts"))
            return Golden(
                beside(fields["file"]),
                checksum(fields["sha256"]),
                fields["model"].numbers(),
                fields["artifacts"].map { it.numbers() },
            )
        }

        /** A manifest may come from elsewhere: it must not name files outside its own folder, nor itself. */
        private fun beside(item: Item): String {
            val path = item.text()
            val parts = SLASH.split(path, -1)
            val plain = path.isNotEmpty() && isPrintable(path) && '\\' !in path && parts.none { it in PLACES }
            if (!plain) item.fault("${shown(path)} does not lie beside the manifest")
            if (parts[0].lowercase() == MANIFEST) item.fault("${shown(path)} is the manifest itself")
            return path
        }

        private fun checksum(item: Item): String {
            val text = item.text()
            return if (SHA256.matcher(text).matches()) text else item.fault("${shown(text)} is not a SHA-256")
        }

        private fun agree(manifest: Manifest) {
            if (manifest.labels.isEmpty() || manifest.files.isEmpty()) {
                throw Fault("a manifest needs at least one label and one file")
            }
            val names = manifest.files.map { it.file } + manifest.golden.map { it.file }
            if (names.toSet().size != names.size) throw Fault("a manifest names each file once")
            for (golden in manifest.golden) {
                for (row in golden.artifacts.values + listOf(golden.model)) {
                    if (row.size != manifest.labels.size) {
                        throw Fault("${golden.file} has ${row.size} logits for ${manifest.labels.size} labels")
                    }
                }
                val unknown = golden.artifacts.keys.firstOrNull { it !in names } ?: continue
                throw Fault("${golden.file} has logits of $unknown, which is no file of the manifest")
            }
        }

        private val SLASH = Pattern.compile("/")
        private val PLACES = setOf("", ".", "..")
    }
}

/** Whether a terminal or a file name takes a text for nothing else; as str.isprintable of Python. */
fun isPrintable(text: String): Boolean {
    var i = 0
    while (i < text.length) {
        val point = text.codePointAt(i)
        i += Character.charCount(point)
        if (point == ' '.code) continue
        when (Character.getType(point).toByte()) {
            Character.CONTROL, Character.FORMAT, Character.SURROGATE, Character.PRIVATE_USE, Character.UNASSIGNED,
            Character.LINE_SEPARATOR, Character.PARAGRAPH_SEPARATOR, Character.SPACE_SEPARATOR -> return false
        }
    }
    return true
}

fun sha256Of(content: ByteArray): String = hex(MessageDigest.getInstance("SHA-256").digest(content))

fun hex(bytes: ByteArray): String {
    val text = StringBuilder()
    for (byte in bytes) {
        text.append(Character.forDigit(byte.toInt() shr 4 and 15, 16))
        text.append(Character.forDigit(byte.toInt() and 15, 16))
    }
    return text.toString()
}
