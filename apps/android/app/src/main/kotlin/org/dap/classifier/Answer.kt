package org.dap.classifier

import android.app.Activity
import android.os.SystemClock
import android.view.View
import android.widget.LinearLayout
import android.widget.ProgressBar
import android.widget.TextView
import kotlin.math.roundToInt
import org.dap.core.Format
import org.dap.core.Pixels
import org.dap.core.best
import org.dap.core.percentile
import org.dap.core.softmax

/** The likeliest classes with bars, and the figures below them; on the main thread. */
class Answer(private val activity: Activity) {
    private val takenMs = ArrayDeque<Double>()
    private val framesAt = ArrayDeque<Long>()
    private var spokenAt = 0L

    /** Another model, or the camera anew: the median begins again. */
    fun restart() {
        takenMs.clear()
        framesAt.clear()
    }

    /** size: of the photo; null for one that has the model's size;  live: more of them follow at once */
    fun show(labels: List<String>, logits: FloatArray, ms: Double, size: Pixels?, live: Boolean) {
        val shares = softmax(logits)
        val places = best(logits, minOf(SHOWN, labels.size))
        val list = activity.findViewById<LinearLayout>(R.id.answers)
        while (list.childCount < places.size) activity.layoutInflater.inflate(R.layout.answer, list)
        for ((i, place) in places.withIndex()) {
            val row = list.getChildAt(i)
            val (name, share) = Format.label(labels[place]) to Format.percent(shares[place].toDouble())
            row.findViewById<TextView>(R.id.name).text = name
            row.findViewById<TextView>(R.id.share).text = share
            val length = if (shares[place].isNaN()) 0f else 1000 * shares[place] // no number has no length
            row.findViewById<ProgressBar>(R.id.bar).progress = length.roundToInt()
            row.contentDescription = activity.getString(R.string.answer_row, name, share)
        }
        val text = activity.findViewById<TextView>(R.id.figures)
        text.text = if (live) pace(ms) else figure(ms, size)
        val first = Format.label(labels[places[0]])
        val percent = Format.percent(shares[places[0]].toDouble(), 0)
        speak(list, activity.getString(R.string.answer_row, first, percent), live)
    }

    /** A voice that follows every frame could not be listened to. */
    private fun speak(view: View, words: String, live: Boolean) {
        val now = SystemClock.elapsedRealtime()
        if (live && now - spokenAt < SPEAK_MS) return
        spokenAt = now
        view.announceForAccessibility(words)
    }

    private fun figure(ms: Double, size: Pixels?): String = if (size == null) Format.milliseconds(ms)
    else activity.getString(R.string.figures_photo, Format.milliseconds(ms), size.width, size.height)

    private fun pace(ms: Double): String {
        takenMs.addLast(ms)
        framesAt.addLast(SystemClock.elapsedRealtimeNanos())
        if (takenMs.size > KEPT) takenMs.removeFirst()
        if (framesAt.size > KEPT) framesAt.removeFirst()
        val span = (framesAt.last() - framesAt.first()) / 1e9
        val rate = if (span > 0) (framesAt.size - 1) / span else 0.0
        val median = percentile(takenMs.toDoubleArray().sortedArray(), 0.5)
        return activity.getString(R.string.figures, Format.milliseconds(median), Format.digits(rate))
    }

    private companion object {
        const val SHOWN = 5
        const val SPEAK_MS = 2500L

        /** inferences that the median is of */
        const val KEPT = 50
    }
}
