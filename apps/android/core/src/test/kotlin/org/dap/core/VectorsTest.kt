package org.dap.core

import java.io.File
import kotlin.math.abs
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue

/** tests/vectors: what the pipeline, the web app and this app must agree on. */
class VectorsTest {
    private val folder = File(System.getProperty("vectors") ?: "../../../tests/vectors")

    private fun cases(name: String): List<Item> =
        Item(parseJson(File(folder, name).readBytes()), name).list { it }.also { assertTrue(it.isNotEmpty()) }

    private operator fun Item.get(key: String) = Item(plainMap()[key], key)

    private fun floats(item: Item): FloatArray = item.list { one -> one.orNull { it.number() } }
        .map { it?.toFloat() ?: Float.NaN }.toFloatArray()

    private fun assertClose(expected: Double, found: Double, what: String) =
        assertTrue(abs(expected - found) <= 1e-9 * maxOf(1.0, abs(expected)), "$what: $found instead of $expected")

    @Test
    fun picturesAreResizedToTheBit() {
        for (case in cases("resize.json")) {
            val (width, height) = case["width"].count() to case["height"].count()
            val rule = case["rule"].plainMap()
            val size = (rule["centre_crop"] as Long).toInt()
            val input = InputSpec(size, size, "RGB", 0.0 to 255.0, rule)
            val found = resize(MadePicture(width, height), ResizeRule.of(input))
            assertEquals(case["first"].list { it.whole().toByte() }, found.take(12), "$width x $height to $rule")
            assertEquals(case["sha256"].text(), sha256Of(found), "$width x $height to $rule")
        }
    }

    @Test
    fun statisticsAreThePipelines() {
        for (case in cases("statistics.json")) {
            val samples = case["samples_ns"].list { it.whole() }.toLongArray()
            val found = summarise(samples, case["seconds"].number(), case["min_samples"].count())
            assertClose(case["p5_ms"].number(), found.p5Ms, "p5")
            assertClose(case["p50_ms"].number(), found.p50Ms, "p50")
            assertClose(case["p90_ms"].number(), found.p90Ms, "p90")
            assertClose(case["mean_ms"].number(), found.meanMs, "mean")
            assertClose(case["p90_bound_ms"].number(), found.p90BoundMs, "p90_bound")
            assertEquals(case["why_invalid"].orNull { it.text() }, found.whyInvalid)
        }
    }

    @Test
    fun equalAnswersComeInOrder() {
        for (case in cases("answers.json")) {
            val logits = floats(case["logits"])
            assertEquals(case["argmax"].whole().toInt(), argmax(logits))
            assertEquals(case["best"].list { it.whole().toInt() }, best(logits, 5))
            case["shares"].orNull { it.numbers() }?.forEachIndexed { i, share ->
                assertTrue(abs(share - softmax(logits)[i]) < 1e-6)
            }
        }
    }

    @Test
    fun differencesAreThePipelines() {
        for (case in cases("differences.json")) {
            val found = case["found"].list { floats(it) }
            val expected = case["expected"].list { it.numbers() }
            assertEquals(case["error"].orNull { it.number() }, largestDifference(found, expected))
            assertEquals(case["top1"].number(), top1(found, case["labels"].list { it.whole().toInt() }))
        }
    }

    @Test
    fun manifestsAreTakenOrRefused() {
        for (case in cases("manifests.json")) {
            val name = case["name"].text()
            val content = case["text"].text().toByteArray()
            if (case["good"].truth()) {
                assertTrue(Manifest.read(content).labels.isNotEmpty(), name)
            } else {
                val fault = assertFailsWith<Fault>(name) { Manifest.read(content) }
                assertTrue(fault.message!!.startsWith(MANIFEST), fault.message)
            }
        }
    }

    @Test
    fun resultsAreWrittenAsTheContractHasThem() {
        for (case in cases("results.json")) {
            val job = Job.read(writeJson(case["job"].plainMap()).toByteArray())
            val expected = case["result"].plainMap()
            val result = resultOf(job, case)
            val written = parseJson(writeJson(result.toJson()).toByteArray())
            assertEquals(unified(expected), unified(written), case["name"].text())
        }
    }

    /** Numbers as doubles, so that 1 and 1.0 are the same. */
    private fun unified(value: Any?): Any? = when (value) {
        is Map<*, *> -> value.mapValues { unified(it.value) }
        is List<*> -> value.map { unified(it) }
        is Number -> value.toDouble()
        else -> value
    }

    private fun resultOf(job: Job, case: Item): DeviceResult {
        val told = case["result"]
        val device = Description("Pixel", "Android 15", null, 8, "arm64-v8a", null)
        val refused = told["refused"].orNull { it.text() }
        if (refused != null) {
            return DeviceResult(job.id, job.files[0], "a".repeat(64), device, 2, "", "", refused = refused)
        }
        val conditions = Conditions(31.5, "80 % idle", false, if (case["name"].text() == "too hot") 3 else 0)
        val golden = told["golden"].list { floats(it) }
        val logits = told["logits"].list { floats(it) }
        val time = summarise(case["samples_ns"].list { it.whole() }.toLongArray(), 0.5, job.protocol!!.minSamples)
        val why = Conditions.heldBack(conditions, conditions)
        return DeviceResult(
            job.id,
            job.files[0],
            "a".repeat(64),
            device,
            job.threads,
            "TFLite",
            "2.14.0",
            before = conditions,
            after = conditions,
            golden = golden,
            goldenError = largestDifference(golden, job.golden),
            logits = logits,
            top1 = top1(logits, job.labels),
            latency = mapOf(job.files[0] to if (why == null) time else time.invalid(why)),
            peakMb = 12.5,
            unmeasured = mapOf(job.files[1] to "it does not load"),
        )
    }
}

/** A picture as tests/vectors/make.py makes it. */
private class MadePicture(override val width: Int, override val height: Int) : Pixels {
    private val pixels = IntArray(width * height)

    init {
        var state = 1L + width + 1000L * height
        for (i in 0 until width * height * 3) {
            state = (state * 1103515245 + 12345) and 0x7fffffff
            val value = ((state shr 16) % 128 + i / 3 % width * 127 / width) % 256
            pixels[i / 3] = pixels[i / 3] shl 8 or value.toInt()
        }
    }

    override fun rows(top: Int, count: Int, into: IntArray) {
        pixels.copyInto(into, 0, top * width, (top + count) * width)
    }
}
