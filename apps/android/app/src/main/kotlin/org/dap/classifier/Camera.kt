package org.dap.classifier

import android.Manifest
import android.app.Activity
import android.content.Context
import android.content.pm.PackageManager
import android.graphics.ImageFormat
import android.hardware.camera2.CameraAccessException
import android.hardware.camera2.CameraCaptureSession
import android.hardware.camera2.CameraCharacteristics
import android.hardware.camera2.CameraDevice
import android.hardware.camera2.CameraManager
import android.hardware.camera2.CaptureRequest
import android.media.Image
import android.media.ImageReader
import android.os.Handler
import android.os.HandlerThread
import android.util.Size
import android.view.Surface
import kotlin.math.abs
import org.dap.core.Frame
import org.dap.core.Plane

/**
 * The camera's frames, upright.
 *
 * wanted:    whether a frame would be looked at now; others are dropped unread
 * onFrame:   on the camera's own thread
 * onProblem: a string resource, on the camera's own thread or the main one; nothing comes after it
 */
class Camera(
    private val activity: Activity,
    private val wanted: () -> Boolean,
    private val onFrame: (Frame) -> Unit,
    private val onProblem: (Int) -> Unit,
) {
    private val manager = activity.getSystemService(Context.CAMERA_SERVICE) as CameraManager
    private val thread = HandlerThread("camera").apply { start() }
    private val handler = Handler(thread.looper)
    private var device: CameraDevice? = null
    private var reader: ImageReader? = null
    private var stopped = false

    fun start() {
        if (activity.checkSelfPermission(Manifest.permission.CAMERA) != PackageManager.PERMISSION_GRANTED) {
            return onProblem(R.string.no_camera_permission)
        }
        handler.post {
            try {
                open()
            } catch (error: CameraAccessException) {
                problem(error.reason)
            } catch (error: SecurityException) { // taken away meanwhile, or switched off for all
                onProblem(R.string.camera_disabled)
            } catch (error: IllegalArgumentException) { // it went away since it was listed
                onProblem(R.string.camera_failed)
            }
        }
    }

    /** Give the camera back; nothing is said afterwards. */
    fun stop() {
        handler.post {
            stopped = true
            device?.close()
            reader?.close()
            thread.quitSafely()
        }
    }

    private fun problem(reason: Int) {
        if (stopped) return
        onProblem(
            when (reason) {
                CameraAccessException.CAMERA_IN_USE, CameraAccessException.MAX_CAMERAS_IN_USE -> R.string.camera_busy
                CameraAccessException.CAMERA_DISABLED -> R.string.camera_disabled
                else -> R.string.camera_failed
            },
        )
    }

    private fun open() {
        val id = manager.cameraIdList.minByOrNull { if (facing(it) == CameraCharacteristics.LENS_FACING_BACK) 0 else 1 }
            ?: return onProblem(R.string.no_camera)
        val size = size(id)
        val frames = ImageReader.newInstance(size.width, size.height, ImageFormat.YUV_420_888, 3)
        reader = frames
        frames.setOnImageAvailableListener({ take(it, id) }, handler)
        manager.openCamera(id, object : CameraDevice.StateCallback() {
            override fun onOpened(camera: CameraDevice) {
                device = camera
                if (stopped) return camera.close()
                try {
                    stream(camera, frames.surface)
                } catch (error: CameraAccessException) {
                    problem(error.reason)
                } catch (error: IllegalStateException) { // it was closed meanwhile
                    problem(CameraAccessException.CAMERA_ERROR)
                }
            }

            override fun onDisconnected(camera: CameraDevice) {
                camera.close()
                problem(CameraAccessException.CAMERA_IN_USE)
            }

            override fun onError(camera: CameraDevice, error: Int) {
                camera.close()
                problem(
                    when (error) {
                        ERROR_CAMERA_IN_USE, ERROR_MAX_CAMERAS_IN_USE -> CameraAccessException.CAMERA_IN_USE
                        ERROR_CAMERA_DISABLED -> CameraAccessException.CAMERA_DISABLED
                        else -> CameraAccessException.CAMERA_ERROR
                    },
                )
            }
        }, handler)
    }

    @Suppress("DEPRECATION") // its successor needs Android 9
    private fun stream(camera: CameraDevice, surface: Surface) {
        camera.createCaptureSession(listOf(surface), object : CameraCaptureSession.StateCallback() {
            override fun onConfigured(session: CameraCaptureSession) {
                if (stopped) return
                try {
                    val request = camera.createCaptureRequest(CameraDevice.TEMPLATE_PREVIEW)
                    request.addTarget(surface)
                    request.set(CaptureRequest.CONTROL_AF_MODE, CaptureRequest.CONTROL_AF_MODE_CONTINUOUS_PICTURE)
                    session.setRepeatingRequest(request.build(), null, handler)
                } catch (error: CameraAccessException) {
                    problem(error.reason)
                } catch (error: IllegalStateException) {
                    problem(CameraAccessException.CAMERA_ERROR)
                }
            }

            override fun onConfigureFailed(session: CameraCaptureSession) = problem(CameraAccessException.CAMERA_ERROR)
        }, handler)
    }

    private fun take(frames: ImageReader, id: String) {
        val image = frames.acquireLatestImage() ?: return
        try {
            if (!stopped && wanted()) onFrame(frame(image, id))
        } finally {
            image.close()
        }
    }

    private fun frame(image: Image, id: String): Frame {
        val planes = image.planes.map { plane ->
            val bytes = ByteArray(plane.buffer.remaining())
            plane.buffer.get(bytes)
            Plane(bytes, plane.rowStride, plane.pixelStride)
        }
        val front = facing(id) == CameraCharacteristics.LENS_FACING_FRONT
        val sensor = manager.getCameraCharacteristics(id).get(CameraCharacteristics.SENSOR_ORIENTATION) ?: 0
        val turn = 90 * rotation()
        val degrees = (if (front) sensor + turn else sensor - turn + 360) % 360
        return Frame(image.width, image.height, planes, degrees, front)
    }

    /** Quarter turns of the screen. */
    @Suppress("DEPRECATION") // its successor needs Android 11
    private fun rotation(): Int = activity.windowManager.defaultDisplay.rotation

    private fun facing(id: String): Int? = manager.getCameraCharacteristics(id).get(CameraCharacteristics.LENS_FACING)

    /** The size nearest to 640 x 480: what the model sees is smaller. */
    private fun size(id: String): Size {
        val map = manager.getCameraCharacteristics(id).get(CameraCharacteristics.SCALER_STREAM_CONFIGURATION_MAP)
        val sizes = map?.getOutputSizes(ImageFormat.YUV_420_888).orEmpty()
        return sizes.minByOrNull { abs(it.width - 640) + abs(it.height - 480) } ?: Size(640, 480)
    }
}
