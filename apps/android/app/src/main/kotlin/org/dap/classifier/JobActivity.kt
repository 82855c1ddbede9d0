package org.dap.classifier

import android.app.Activity
import android.content.Intent
import android.os.Build
import android.os.Bundle
import android.view.WindowManager
import android.widget.TextView
import java.io.File
import java.io.IOException
import java.util.regex.Pattern
import org.dap.core.Fault
import org.dap.core.Job
import org.dap.core.RESULT
import org.dap.core.work
import org.dap.core.writeJson
import org.dap.engine.LiteRt
import org.dap.engine.NoRuntime

/**
 * Does a job of a computer (targets/devices/adb.py): `am start -n …/org.dap.classifier.JobActivity --es job ID`.
 *
 * The job's files lie in files/jobs/ID. There it leaves result.json, or error.json: {"error": text, "runtime": whether
 * it is the runtime that is missing}; meanwhile progress.json: {"progress": [what, done, total], "at": rising}.
 */
class JobActivity : Activity() {
    private lateinit var host: AppHost

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        setContentView(R.layout.job)
        window.addFlags(WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON)
        if (Build.VERSION.SDK_INT >= 27) setTurnScreenOn(true)
        host = AppHost(applicationContext)
        begin(intent)
    }

    override fun onNewIntent(intent: Intent) {
        super.onNewIntent(intent)
        begin(intent)
    }

    override fun onPause() {
        super.onPause()
        host.away = true
    }

    private fun begin(intent: Intent) {
        val id = intent.getStringExtra("job")?.takeIf { ID.matcher(it).matches() } ?: return finish()
        val folder = File(filesDir, "jobs/$id")
        Models.worker.execute {
            host.away = false
            try {
                run(folder)
                told(getString(R.string.job_done))
            } catch (error: NoRuntime) {
                failed(folder, error.message, true)
            } catch (error: Fault) {
                failed(folder, error.message, false)
            } catch (error: IOException) {
                failed(folder, error.toString(), false)
            } catch (error: OutOfMemoryError) {
                failed(folder, "its memory is full", false)
            }
        }
    }

    private fun run(folder: File) {
        val job = Job.read(folder)
        val engine = LiteRt()
        if (job.format != engine.format) throw Fault("this app has no ${job.format}; it has ${engine.format}")
        val result = work(job, folder, engine, host) { what, done, total ->
            put(folder, PROGRESS, mapOf("progress" to listOf(what, done, total), "at" to System.nanoTime()))
            told(getString(R.string.job_step, what, done, total))
        }
        result.write(File(folder, RESULT))
    }

    private fun failed(folder: File, why: String?, runtime: Boolean) {
        put(folder, ERROR, mapOf("error" to (why ?: "it says no reason"), "runtime" to runtime))
        told(getString(R.string.job_failed, why))
    }

    /** In one step. Where it cannot be written nobody waits for it any more. */
    private fun put(folder: File, name: String, content: Map<String, Any?>) {
        val partial = File(folder, "$name.partial")
        try {
            partial.writeText(writeJson(content))
            partial.renameTo(File(folder, name))
        } catch (error: IOException) {
            partial.delete()
        }
    }

    private fun told(text: String) = runOnUiThread { findViewById<TextView>(R.id.step).text = text }

    private companion object {
        const val PROGRESS = "progress.json"
        const val ERROR = "error.json"
        val ID = Pattern.compile("[0-9a-f]{32}")
    }
}
