package org.dap.classifier

import android.content.Context
import android.widget.TextView

/** Texts that are as many as there is to say. */
object Views {
    fun title(context: Context, text: String) = view(context, text, R.style.Title)

    fun body(context: Context, text: String) = view(context, text, R.style.Body)

    fun quiet(context: Context, text: String) = view(context, text, R.style.Quiet)

    fun notice(context: Context, text: String) = view(context, text, R.style.Notice)

    private fun view(context: Context, text: String, style: Int): TextView =
        TextView(context, null, 0, style).also {
            it.text = text
            it.setTextIsSelectable(true)
        }
}
