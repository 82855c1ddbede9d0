package org.dap.classifier

import android.Manifest
import android.app.Activity
import android.content.Intent
import android.content.pm.PackageManager
import android.graphics.Bitmap
import android.net.Uri
import android.os.Build
import android.os.Bundle
import android.os.SystemClock
import android.provider.Settings
import android.view.View
import android.view.WindowManager
import android.widget.Button
import android.widget.ImageView
import android.widget.LinearLayout
import android.widget.ProgressBar
import android.widget.RadioButton
import android.widget.RadioGroup
import android.widget.TextView
import java.util.concurrent.atomic.AtomicBoolean
import kotlin.math.roundToInt
import org.dap.core.Fault
import org.dap.core.Format
import org.dap.core.Frame
import org.dap.core.GoldenCheck
import org.dap.core.LatencyResult
import org.dap.core.Pixels
import org.dap.core.Refused
import org.dap.core.Role
import org.dap.core.best
import org.dap.core.percentile
import org.dap.core.resize
import org.dap.core.softmax
import org.dap.core.summarise
import org.dap.engine.NoRuntime

/** The camera or a photo, and what the model says of it. */
class MainActivity : Activity() {
    private var loaded: Loaded? = null
    private var camera: Camera? = null
    private var live = false
    private var role = Role.PRUNED

    /** what the model was last asked about, to ask the other one */
    private var latest: ByteArray? = null
    private val busy = AtomicBoolean(false)
    private val takenMs = ArrayDeque<Double>()
    private val framesAt = ArrayDeque<Long>()
    private var spokenAt = 0L

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        setContentView(R.layout.main)
        live = state?.getBoolean(LIVE) ?: false
        role = if (state?.getBoolean(DENSE) == true) Role.DENSE else Role.PRUNED
        find<Button>(R.id.camera).setOnClickListener { if (live) stopCamera() else startCamera() }
        find<Button>(R.id.photo).setOnClickListener { choosePhoto() }
        find<Button>(R.id.card).setOnClickListener { startActivity(Intent(this, CardActivity::class.java)) }
        find<Button>(R.id.check).setOnClickListener {
            stopCamera()
            startActivity(Intent(this, CheckActivity::class.java))
        }
        find<RadioGroup>(R.id.role).setOnCheckedChangeListener { _, id ->
            choose(if (id == R.id.dense) Role.DENSE else Role.PRUNED)
        }
        Models.worker.execute { load() }
    }

    override fun onSaveInstanceState(state: Bundle) {
        super.onSaveInstanceState(state)
        state.putBoolean(LIVE, live)
        state.putBoolean(DENSE, role == Role.DENSE)
    }

    override fun onResume() {
        super.onResume()
        if (live && loaded != null) startCamera()
    }

    override fun onPause() {
        super.onPause()
        camera?.stop()
        camera = null
    }

    // the model

    private fun load() {
        val problem = try {
            val model = Models.load(this)
            runOnUiThread { show(model) }
            bought(model)
            return
        } catch (error: NoRuntime) {
            getString(R.string.no_runtime, error.message)
        } catch (error: Fault) {
            getString(R.string.no_model, error.message)
        } catch (error: Refused) {
            getString(R.string.no_model, error.message)
        } catch (error: NoPicture) {
            getString(R.string.no_model, getString(error.text))
        } catch (error: OutOfMemoryError) {
            getString(R.string.no_runtime, getString(R.string.picture_too_large))
        }
        runOnUiThread {
            notice(problem)
            find<TextView>(R.id.status).text = ""
        }
    }

    private fun show(model: Loaded) {
        loaded = model
        for (id in listOf(R.id.camera, R.id.photo, R.id.card, R.id.check)) find<View>(id).isEnabled = true
        val both = Role.DENSE in model.programs
        find<View>(R.id.role).visibility = if (both) View.VISIBLE else View.GONE
        if (role == Role.DENSE && both) find<RadioButton>(R.id.dense).isChecked = true
        if (both) boughtTitle().addView(Views.quiet(this, getString(R.string.bought_soon)))
        val status = getString(R.string.ready, model.engine.runtime, model.engine.version, Models.THREADS)
        val proofs = if (model.engine.isForProofs) "\n" + getString(R.string.proofs, model.engine.version) else ""
        find<TextView>(R.id.status).text = status + proofs
        val golden = model.golden
        if (golden.verdict == GoldenCheck.Verdict.BAD) {
            val limit = Format.digits(golden.limit ?: 0.0)
            val error = golden.error?.let { Format.digits(it) }
            notice(if (error == null) getString(R.string.golden_nan) else getString(R.string.golden_bad, error, limit))
        }
        if (live) return startCamera()
        val picture = model.pictures.firstOrNull() ?: return
        val size = model.manifest.input
        find<ImageView>(R.id.picture).setImageBitmap(Pictures.bitmap(picture, size.width, size.height))
        ask(picture, null)
    }

    private fun choose(chosen: Role) {
        if (chosen == role) return
        role = chosen
        takenMs.clear()
        val picture = latest
        if (!live && picture != null) ask(picture, null)
    }

    // pictures

    private fun ask(picture: ByteArray, size: Pixels?) {
        latest = picture
        val programs = loaded?.programs ?: return
        val program = programs[role] ?: programs.getValue(Role.PRUNED)
        Models.worker.execute {
            try {
                program.prepare(picture)
                val begin = System.nanoTime()
                val logits = program.run()
                val ms = (System.nanoTime() - begin) / 1e6
                runOnUiThread { answer(logits, ms, size) }
            } catch (error: Refused) {
                runOnUiThread { notice(getString(R.string.no_model, error.message)) }
            } finally {
                busy.set(false)
            }
        }
    }

    private fun answer(logits: FloatArray, ms: Double, size: Pixels?) {
        val labels = loaded?.manifest?.labels ?: return
        val shares = softmax(logits)
        val places = best(logits, minOf(SHOWN, labels.size))
        val list = find<LinearLayout>(R.id.answers)
        while (list.childCount < places.size) layoutInflater.inflate(R.layout.answer, list)
        for ((i, place) in places.withIndex()) {
            val row = list.getChildAt(i)
            val (name, share) = Format.label(labels[place]) to Format.percent(shares[place].toDouble())
            row.findViewById<TextView>(R.id.name).text = name
            row.findViewById<TextView>(R.id.share).text = share
            row.findViewById<ProgressBar>(R.id.bar).progress = (1000 * shares[place]).roundToInt()
            row.contentDescription = getString(R.string.answer_row, name, share)
        }
        figures(ms, size)
        val first = Format.label(labels[places[0]])
        speak(getString(R.string.answer_row, first, Format.percent(shares[places[0]].toDouble(), 0)))
    }

    /** A voice that follows every frame could not be listened to. */
    private fun speak(words: String) {
        val now = SystemClock.elapsedRealtime()
        if (live && now - spokenAt < SPEAK_MS) return
        spokenAt = now
        find<View>(R.id.answers).announceForAccessibility(words)
    }

    private fun figures(ms: Double, size: Pixels?) {
        takenMs.addLast(ms)
        if (takenMs.size > KEPT) takenMs.removeFirst()
        val text = find<TextView>(R.id.figures)
        if (!live) {
            text.text = if (size == null) Format.milliseconds(ms)
            else getString(R.string.figures_photo, Format.milliseconds(ms), size.width, size.height)
            return
        }
        framesAt.addLast(SystemClock.elapsedRealtimeNanos())
        if (framesAt.size > KEPT) framesAt.removeFirst()
        val span = (framesAt.last() - framesAt.first()) / 1e9
        val rate = if (span > 0) (framesAt.size - 1) / span else 0.0
        val median = percentile(takenMs.toDoubleArray().sortedArray(), 0.5)
        text.text = getString(R.string.figures, Format.milliseconds(median), Format.digits(rate))
    }

    private fun choosePhoto() {
        stopCamera()
        val pick = if (Build.VERSION.SDK_INT >= 33) Intent(PICK_IMAGES).setType("image/*")
        else Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType("image/*")
        if (pick.resolveActivity(packageManager) == null) return notice(getString(R.string.no_picture))
        startActivityForResult(pick, PHOTO)
    }

    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        super.onActivityResult(request, result, data)
        val uri = data?.data ?: return
        if (request != PHOTO || result != RESULT_OK) return
        notice(null)
        Models.worker.execute {
            try {
                val model = Models.load(this)
                val photo = Pictures.read(contentResolver, uri)
                val picture = resize(photo.pixels, model.rule)
                runOnUiThread {
                    find<ImageView>(R.id.picture).setImageBitmap(photo.preview)
                    ask(picture, photo.pixels)
                }
            } catch (error: NoPicture) {
                runOnUiThread { notice(getString(error.text)) }
            } catch (error: OutOfMemoryError) {
                runOnUiThread { notice(getString(R.string.picture_too_large)) }
            }
        }
    }

    // the camera

    private fun startCamera() {
        notice(null)
        if (checkSelfPermission(Manifest.permission.CAMERA) != PackageManager.PERMISSION_GRANTED) {
            live = false
            return requestPermissions(arrayOf(Manifest.permission.CAMERA), PERMISSION)
        }
        live = true
        window.addFlags(WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON)
        takenMs.clear()
        framesAt.clear()
        camera?.stop()
        camera = Camera(this, { !busy.get() }, { take(it) }, { text ->
            runOnUiThread {
                stopCamera()
                notice(getString(text))
            }
        }).also { it.start() }
    }

    private fun stopCamera() {
        live = false
        window.clearFlags(WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON)
        camera?.stop()
        camera = null
    }

    /** On the camera's thread. */
    private fun take(frame: Frame) {
        val model = loaded ?: return
        if (!busy.compareAndSet(false, true)) return
        val picture = resize(frame, model.rule)
        val shown = Bitmap.createBitmap(frame.pixels, frame.width, frame.height, Bitmap.Config.ARGB_8888)
        runOnUiThread {
            if (live) {
                find<ImageView>(R.id.picture).setImageBitmap(shown)
                ask(picture, null)
            } else busy.set(false)
        }
    }

    override fun onRequestPermissionsResult(request: Int, permissions: Array<String>, results: IntArray) {
        if (request != PERMISSION || results.isEmpty()) return
        if (results[0] == PackageManager.PERMISSION_GRANTED) return startCamera()
        notice(getString(R.string.no_camera_permission))
        val button = find<Button>(R.id.notice_action)
        button.visibility = View.VISIBLE
        if (shouldShowRequestPermissionRationale(Manifest.permission.CAMERA)) {
            button.setText(R.string.ask_again)
            button.setOnClickListener { startCamera() }
        } else { // refused for good: only the settings can change it
            button.setText(R.string.open_settings)
            button.setOnClickListener {
                val mine = Uri.fromParts("package", packageName, null)
                startActivity(Intent(Settings.ACTION_APPLICATION_DETAILS_SETTINGS, mine))
            }
        }
    }

    // what pruning bought

    /** On the worker: a short look at both in turn. */
    private fun bought(model: Loaded) {
        val dense = model.manifest.file(model.engine.format, Role.DENSE) ?: return
        model.times?.let { return runOnUiThread { showBought(model, dense.sizeBytes, it) } }
        val picture = model.pictures.firstOrNull() ?: return
        val times = model.programs.mapValues { LongArray(ROUNDS) }
        for (program in model.programs.values) program.prepare(picture)
        val begin = System.nanoTime()
        for (round in -WARMUP until ROUNDS) {
            for ((role, program) in model.programs) {
                val start = System.nanoTime()
                program.run()
                if (round >= 0) times.getValue(role)[round] = System.nanoTime() - start
            }
        }
        val seconds = (System.nanoTime() - begin) / 1e9
        val found = times.mapValues { summarise(it.value, seconds, ROUNDS) }
        model.times = found
        runOnUiThread { showBought(model, dense.sizeBytes, found) }
    }

    /** The list, with nothing in it but its title. */
    private fun boughtTitle(): LinearLayout {
        val list = find<LinearLayout>(R.id.bought)
        list.removeAllViews()
        list.visibility = View.VISIBLE
        list.addView(Views.title(this, getString(R.string.bought)))
        return list
    }

    private fun showBought(model: Loaded, denseBytes: Long, times: Map<Role, LatencyResult>) {
        val list = boughtTitle()
        val (slow, fast) = times.getValue(Role.DENSE).p50Ms to times.getValue(Role.PRUNED).p50Ms
        val gain = if (slow >= fast) getString(R.string.faster, Format.digits(slow / fast))
        else getString(R.string.slower, Format.digits(fast / slow))
        fun row(name: Int, gain: String, dense: String, pruned: String) {
            list.addView(Views.body(this, getString(R.string.bought_row, getString(name), gain, dense, pruned)))
        }
        row(R.string.bought_time, gain, Format.milliseconds(slow), Format.milliseconds(fast))
        val (large, small) = denseBytes.toDouble() to model.file(Role.PRUNED).sizeBytes.toDouble()
        row(R.string.bought_size, Format.change(large, small), Format.bytes(large), Format.bytes(small))
        val (params, dense) = model.manifest.params to model.manifest.paramsDense
        if (params != null && dense != null) {
            val (now, was) = params.toDouble() to dense.toDouble()
            row(R.string.bought_params, Format.change(was, now), Format.count(was), Format.count(now))
        }
        val (still, right) = model.file(Role.PRUNED).measured?.top1 to model.file(Role.DENSE).measured?.top1
        if (still != null && right != null) {
            val (before, now) = Format.percent(right / 100) to Format.percent(still / 100)
            row(R.string.bought_top1, Format.points(right, still), before, now)
        }
        times.values.firstNotNullOfOrNull { it.whyInvalid }?.let {
            list.addView(Views.quiet(this, getString(R.string.bought_rough, it)))
        }
    }

    // words

    private fun notice(text: String?) {
        val view = find<TextView>(R.id.notice)
        view.text = text
        view.visibility = if (text == null) View.GONE else View.VISIBLE
        find<View>(R.id.notice_action).visibility = View.GONE
    }

    private fun <T : View> find(id: Int): T = findViewById(id)

    private companion object {
        /** MediaStore.ACTION_PICK_IMAGES; MediaStore is not among the framework's own signatures */
        const val PICK_IMAGES = "android.provider.action.PICK_IMAGES"
        const val LIVE = "live"
        const val DENSE = "dense"
        const val PHOTO = 1
        const val PERMISSION = 2
        const val SHOWN = 5
        const val SPEAK_MS = 2500L
        const val WARMUP = 3
        const val ROUNDS = 24

        /** inferences that the median is of */
        const val KEPT = 50
    }
}
