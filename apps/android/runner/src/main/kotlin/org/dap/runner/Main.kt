package org.dap.runner

import java.io.File
import java.io.IOException
import kotlin.concurrent.thread
import kotlin.system.exitProcess
import org.dap.core.Fault
import org.dap.core.Job
import org.dap.core.Progress
import org.dap.core.RESULT
import org.dap.core.work
import org.dap.core.writeJson
import org.dap.engine.LiteRt
import org.dap.engine.NoRuntime

/*
 * The runner on a phone: does the job in a folder and leaves the result there, without an app.
 *
 *     CLASSPATH=runner.jar LD_LIBRARY_PATH=. app_process / org.dap.runner.MainKt FOLDER    do the job
 *     CLASSPATH=runner.jar app_process / org.dap.runner.MainKt                             say what this phone is
 *
 * Prints lines of JSON as targets/devices/board.py does: {"progress": [what, done, total]} about once a second,
 * {"alive": true} meanwhile, {"error": text, "runtime": whether it is the runtime that is missing} if nothing came of
 * it. Exit status: 0 with a result, 1 without, 3 without a runtime.
 */
private const val FAILED = 1
private const val NO_RUNTIME = 3
private const val ALIVE_MS = 2000L
private const val PROGRESS_NS = 1_000_000_000L

fun main(arguments: Array<String>) {
    val host = ShellHost()
    if (arguments.isEmpty()) {
        say(host.describe().toJson())
        return
    }
    thread(isDaemon = true) {
        while (true) {
            Thread.sleep(ALIVE_MS)
            say(mapOf("alive" to true))
        }
    }
    exitProcess(run(File(arguments[0]), host))
}

private fun run(folder: File, host: ShellHost): Int {
    try {
        val job = Job.read(folder)
        val engine = LiteRt()
        if (job.format != engine.format) throw Fault("this runner has no ${job.format}; it has ${engine.format}")
        work(job, folder, engine, host, Reporter()).write(File(folder, RESULT))
    } catch (error: NoRuntime) {
        return failed(error.message, NO_RUNTIME)
    } catch (error: Fault) {
        return failed(error.message, FAILED)
    } catch (error: IOException) {
        return failed(error.toString(), FAILED)
    } catch (error: OutOfMemoryError) {
        return failed("its memory is full", FAILED)
    }
    return 0
}

private fun failed(why: String?, status: Int): Int {
    say(mapOf("error" to (why ?: "it says no reason"), "runtime" to (status == NO_RUNTIME)))
    return status
}

private fun say(line: Map<String, Any?>) {
    synchronized(System.out) {
        println(writeJson(line))
        System.out.flush()
    }
}

/** Tells of progress, but not more often than somebody can read. */
private class Reporter : Progress {
    private var last = ""
    private var at = 0L

    override fun tell(what: String, done: Int, total: Int) {
        val now = System.nanoTime()
        if (done == total || what != last || now - at >= PROGRESS_NS) {
            last = what
            at = now
            say(mapOf("progress" to listOf(what, done, total)))
        }
    }
}
