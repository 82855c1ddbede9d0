package org.dap.core

import java.io.File
import kotlin.test.Test
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertNull
import kotlin.test.assertTrue

class CoreTest {
    /** A frame of 4 x 2 pixels, each of another brightness, without colour. */
    private fun grey(degrees: Int, mirrored: Boolean = false): Frame {
        val luma = Plane(ByteArray(8) { (10 * it).toByte() }, 4, 1)
        val chroma = Plane(ByteArray(2) { 128.toByte() }, 2, 1)
        return Frame(4, 2, listOf(luma, chroma, chroma), degrees, mirrored)
    }

    private fun rows(frame: Frame) = frame.pixels.map { (it and 255) / 10 }.chunked(frame.width)

    @Test
    fun aFrameIsTurnedUpright() {
        assertEquals(listOf(listOf(0, 1, 2, 3), listOf(4, 5, 6, 7)), rows(grey(0)))
        assertEquals(listOf(listOf(4, 0), listOf(5, 1), listOf(6, 2), listOf(7, 3)), rows(grey(90)))
        assertEquals(listOf(listOf(7, 6, 5, 4), listOf(3, 2, 1, 0)), rows(grey(180)))
        assertEquals(listOf(listOf(3, 7), listOf(2, 6), listOf(1, 5), listOf(0, 4)), rows(grey(270)))
        assertEquals(listOf(listOf(3, 2, 1, 0), listOf(7, 6, 5, 4)), rows(grey(0, mirrored = true)))
    }

    @Test
    fun aPictureOfTheModelsSizeStaysAsItIs() {
        val frame = grey(0)
        assertContentEquals(ByteArray(24) { (10 * (it / 3)).toByte() }, rgb(frame))
        val rule = mapOf<String, Any?>(
            "shorter_side" to 4L, "longer_side" to "", "interpolation" to "bicubic", "centre_crop" to 4L,
        )
        ResizeRule.of(InputSpec(4, 4, "RGB", 0.0 to 255.0, rule))
        for (input in listOf(
            InputSpec(4, 4, "BGR", 0.0 to 255.0, rule),
            InputSpec(4, 4, "RGB", 0.0 to 1.0, rule),
            InputSpec(4, 5, "RGB", 0.0 to 255.0, rule),
            InputSpec(4, 4, "RGB", 0.0 to 255.0, rule + ("interpolation" to "nearest")),
            InputSpec(4, 4, "RGB", 0.0 to 255.0, rule + ("shorter_side" to 3L)),
        )) {
            assertTrue(assertFailsWith<Fault> { ResizeRule.of(input) }.message!!.isNotEmpty())
        }
    }

    @Test
    fun coloursAreThoseOfJpeg() {
        fun pixel(y: Int, u: Int, v: Int): List<Int> {
            val planes = listOf(y, u, v).map { value -> Plane(ByteArray(4) { value.toByte() }, 2, 1) }
            val value = Frame(2, 2, planes, 0).pixels[0]
            return listOf(value shr 16 and 255, value shr 8 and 255, value and 255)
        }
        assertEquals(listOf(255, 255, 255), pixel(255, 128, 128))
        assertEquals(listOf(254, 0, 0), pixel(76, 85, 255))
        assertEquals(listOf(0, 255, 1), pixel(150, 44, 21).map { if (it == 254) 255 else it })
        assertEquals(listOf(0, 0, 254), pixel(29, 255, 107))
    }

    @Test
    fun measuringStopsWhenTheDeviceIsTooSlowOrSomebodyWantsIt() {
        val protocol = Protocol("brief", 0.02, 1000, 1, 0.0)
        val found = measure(mapOf("a" to { Thread.sleep(5) }, "b" to {}), protocol)
        assertEquals(setOf("a", "b"), found.keys)
        assertEquals(found.getValue("a").samplesMs.size, found.getValue("b").samplesMs.size)
        assertTrue(found.getValue("a").samplesMs.size in 4..20)
        assertTrue(found.getValue("a").whyInvalid!!.endsWith("1000 needed, 64 at least"))
        assertFailsWith<Stopped> { measure(mapOf("a" to {}), protocol) { if (it > 0) throw Stopped() } }
    }

    @Test
    fun heatAndBatterySaverSpoilATime() {
        fun state(thermal: Int?, saver: Boolean? = false) = Conditions(30.0, null, saver, thermal)
        assertNull(Conditions.heldBack(state(1), state(1)))
        assertNull(Conditions.heldBack(state(null, null), state(null, null)))
        assertTrue("thermal status severe" in Conditions.heldBack(state(0), state(3))!!)
        assertTrue("battery saver" in Conditions.heldBack(state(0, true), state(0))!!)
    }

    @Test
    fun aJobThatIsNotWholeIsRefused() {
        val folder = File.createTempFile("job", "").apply { delete() }.apply { mkdir() }
        fun told() = assertFailsWith<Fault> { Job.read(folder) }.message!!
        assertTrue("there is none" in told())
        val files = listOf("model.tflite", GOLDEN, IMAGES)
        for (name in files) File(folder, name).writeBytes(ByteArray(12))
        fun write(vararg changes: Pair<String, Any?>) {
            val job = linkedMapOf<String, Any?>(
                "version" to 1, "id" to "0", "format" to "tflite", "files" to listOf("model.tflite"),
                "sha256" to files.associateWith { sha256Of(File(folder, it)) }, "threads" to 1, "height" to 2,
                "width" to 2, "classes" to 2, "golden" to listOf(listOf(0.0, 1.0)), "labels" to listOf(1),
            )
            File(folder, JOB).writeText(writeJson(job + changes))
        }
        write()
        assertContentEquals(ByteArray(12), Job.read(folder).pictures(folder, GOLDEN).single())
        File(folder, GOLDEN).writeBytes(ByteArray(11))
        assertTrue("golden.u8 did not arrive whole" in told())
        for ((key, value) in listOf(
            "version" to 2, "threads" to 0, "more" to 1, "files" to emptyList<String>(), "labels" to listOf(2),
            "golden" to listOf(listOf(0.0)), "files" to listOf("../x"), "protocol" to emptyMap<String, Any>(),
        )) {
            write(key to value)
            assertTrue("$JOB is missing or not whole" in told(), key)
        }
        folder.deleteRecursively()
    }

    @Test
    fun anArtifactThatDoesNotRunIsAResult() {
        val folder = File.createTempFile("job", "").apply { delete() }.apply { mkdir() }
        for (name in listOf("good", "bad", GOLDEN, IMAGES)) File(folder, name).writeBytes(ByteArray(12))
        val protocol = Protocol("brief", 0.01, 1, 0, 0.0)
        fun job(vararg files: String) = Job(
            "0", "fake", files.toList(), emptyMap(), 1, 2, 2, 2, listOf(doubleArrayOf(0.0, 1.0)), listOf(1), protocol,
            memory = false,
        )
        val host = object : Host {
            override fun describe() = Description("here", "none", null, 1, null, null)

            override fun conditions() = Conditions(null, null, null, null)
        }
        val refused = work(job("bad"), folder, FakeEngine, host) { _, _, _ -> }
        assertEquals("it is bad", refused.refused)
        assertTrue(refused.golden.isEmpty() && refused.latency.isEmpty())
        val measured = work(job("good", "bad"), folder, FakeEngine, host) { _, _, _ -> }
        assertEquals(mapOf("bad" to "it is bad"), measured.unmeasured)
        assertEquals(setOf("good"), measured.latency.keys)
        assertEquals(0.0, measured.goldenError)
        assertEquals(1.0, measured.top1)
        assertEquals("it stands in", measured.latency.getValue("good").whyInvalid)
        folder.deleteRecursively()
    }

    private object FakeEngine : Engine {
        override val format = "fake"
        override val runtime = "Fake"
        override val version = "1"
        override val untimed = "it stands in"

        override fun load(file: File, threads: Int): Program {
            if (file.name == "bad") throw Refused("it is bad")
            return object : Program {
                override fun prepare(picture: ByteArray) = Unit

                override fun run(): FloatArray {
                    Thread.sleep(1)
                    return floatArrayOf(0f, 1f)
                }

                override fun close() = Unit
            }
        }
    }

    @Test
    fun numbersAreShownAsTheWebAppShowsThem() {
        assertEquals("1.23 ms", Format.milliseconds(1.234))
        assertEquals("12.3 ms", Format.milliseconds(12.34))
        assertEquals("123 ms", Format.milliseconds(123.4))
        assertEquals("965 kB", Format.bytes(965_000.0))
        assertEquals("1.23 MB", Format.bytes(1_234_000.0))
        assertEquals("12.3 MB", Format.bytes(12_340_000.0))
        assertEquals("999", Format.count(999.0))
        assertEquals("1.23 M", Format.count(1_234_000.0))
        assertEquals("\u221275 %", Format.change(4.0, 1.0))
        assertEquals("the same", Format.change(4.0, 4.0))
        assertEquals("+1.5 points", Format.points(90.0, 91.5))
        assertEquals("oxeye daisy", Format.label("oxeye_daisy"))
    }
}
