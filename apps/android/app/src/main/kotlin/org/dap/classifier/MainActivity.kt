package org.dap.classifier

import android.Manifest
import android.app.Activity
import android.content.ActivityNotFoundException
import android.content.Intent
import android.content.pm.PackageManager
import android.graphics.Bitmap
import android.net.Uri
import android.os.Build
import android.os.Bundle
import android.provider.Settings
import android.view.View
import android.view.WindowManager
import android.widget.Button
import android.widget.ImageView
import android.widget.RadioButton
import android.widget.RadioGroup
import android.widget.TextView
import java.util.concurrent.atomic.AtomicBoolean
import org.dap.core.Format
import org.dap.core.Frame
import org.dap.core.GoldenCheck
import org.dap.core.Pixels
import org.dap.core.Refused
import org.dap.core.Role
import org.dap.core.resize

/** The camera or a photo, and what the model says of it. */
class MainActivity : Activity() {
    private var loaded: Loaded? = null
    private var camera: Camera? = null
    private var live = false
    private var role = Role.PRUNED

    /** what the model was last asked about, to ask the other one */
    private var latest: ByteArray? = null
    private val busy = AtomicBoolean(false)
    private val answer = Answer(this)

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
        try {
            val model = Models.load(this)
            runOnUiThread { show(model) }
            Bought.take(model)
            runOnUiThread { Bought.show(find(R.id.bought), model) }
        } catch (error: Unusable) {
            runOnUiThread {
                notice(error.message)
                find<TextView>(R.id.status).text = ""
            }
        } catch (error: Refused) { // in the look at both
            runOnUiThread { notice(getString(R.string.no_model, error.message)) }
        }
    }

    private fun show(model: Loaded) {
        loaded = model
        for (id in listOf(R.id.camera, R.id.photo, R.id.card, R.id.check)) find<View>(id).isEnabled = true
        val both = Role.DENSE in model.programs
        find<View>(R.id.role).visibility = if (both) View.VISIBLE else View.GONE
        if (role == Role.DENSE && both) find<RadioButton>(R.id.dense).isChecked = true
        Bought.show(find(R.id.bought), model)
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
        answer.restart()
        val picture = latest
        if (!live && picture != null) ask(picture, null)
    }

    // pictures

    private fun ask(picture: ByteArray, size: Pixels?) {
        latest = picture
        val model = loaded ?: return
        val program = model.programs[role] ?: model.programs.getValue(Role.PRUNED)
        Models.worker.execute {
            try {
                program.prepare(picture)
                val begin = System.nanoTime()
                val logits = program.run()
                val ms = (System.nanoTime() - begin) / 1e6
                runOnUiThread { answer.show(model.manifest.labels, logits, ms, size, live) }
            } catch (error: Refused) {
                runOnUiThread { notice(getString(R.string.no_model, error.message)) }
            } finally {
                busy.set(false)
            }
        }
    }

    private fun choosePhoto() {
        stopCamera()
        val pick = if (Build.VERSION.SDK_INT >= 33) Intent(PICK_IMAGES).setType("image/*")
        else Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType("image/*")
        try {
            startActivityForResult(pick, PHOTO)
        } catch (error: ActivityNotFoundException) {
            notice(getString(R.string.no_picker))
        }
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
            } catch (error: Unusable) {
                runOnUiThread { notice(error.message) }
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
        answer.restart()
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
    }
}
