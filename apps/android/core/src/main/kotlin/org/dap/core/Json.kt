package org.dap.core

import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException
import java.util.regex.Pattern

/** Something from outside that cannot be used; the message says what is wrong with it, and where. */
class Fault(message: String) : Exception(message)

private const val MAX_DEPTH = 100

/** The largest file that is read, as in targets/strict.py. */
const val MAX_BYTES = 64_000_000

/**
 * JSON text (UTF-8) as Map, List, String, Long, Double, Boolean and null; the same texts as Python's json takes, but
 * for NaN and infinities. Throws Fault for anything else, and for a key that stands in an object twice.
 */
fun parseJson(content: ByteArray): Any? {
    if (content.size > MAX_BYTES) throw Fault("is larger than $MAX_BYTES bytes")
    val text = try {
        Charsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(content)).toString()
    } catch (error: CharacterCodingException) {
        throw Fault("is damaged, it is not UTF-8")
    }
    return Parser(text).whole()
}

private class Parser(private val text: String) {
    private var at = 0

    fun whole(): Any? {
        val value = value(0)
        space()
        if (at < text.length) wrong("something follows the end")
        return value
    }

    private fun wrong(what: String): Nothing = throw Fault("is damaged, it is not JSON ($what, at character $at)")

    private fun space() {
        while (at < text.length && text[at] in " \t\n\r") at++
    }

    private fun value(depth: Int): Any? {
        if (depth > MAX_DEPTH) wrong("nested too deeply")
        space()
        return when (if (at < text.length) text[at] else wrong("it ends early")) {
            '{' -> members(depth)
            '[' -> items(depth)
            '"' -> string()
            't' -> word("true", true)
            'f' -> word("false", false)
            'n' -> word("null", null)
            else -> number()
        }
    }

    private fun <T> word(word: String, value: T): T {
        if (!text.startsWith(word, at)) wrong("this is no value")
        at += word.length
        return value
    }

    /** Whether an object or a list goes on, after the comma; `end` is passed over. */
    private fun goesOn(end: Char, first: Boolean): Boolean {
        space()
        if (at >= text.length) wrong("it ends early")
        if (text[at] == end) {
            at++
            return false
        }
        if (!first) {
            if (text[at] != ',') wrong("a comma is missing")
            at++
        }
        return true
    }

    private fun members(depth: Int): Map<String, Any?> {
        at++
        val found = LinkedHashMap<String, Any?>()
        while (goesOn('}', found.isEmpty())) {
            space()
            if (at >= text.length || text[at] != '"') wrong("a key is missing")
            val key = string()
            space()
            if (at >= text.length || text[at] != ':') wrong("a colon is missing")
            at++
            if (key in found) wrong("the key ${shown(key)} stands there twice")
            found[key] = value(depth + 1)
        }
        return found
    }

    private fun items(depth: Int): List<Any?> {
        at++
        val found = ArrayList<Any?>()
        while (goesOn(']', found.isEmpty())) found.add(value(depth + 1))
        return found
    }

    private fun string(): String {
        at++
        val built = StringBuilder()
        while (true) {
            if (at >= text.length) wrong("it ends early")
            val c = text[at++]
            when {
                c == '"' -> return built.toString()
                c < ' ' -> wrong("a control character in a text")
                c != '\\' -> built.append(c)
                else -> built.append(escaped())
            }
        }
    }

    private fun escaped(): Char {
        if (at >= text.length) wrong("it ends early")
        return when (val c = text[at++]) {
            '"', '\\', '/' -> c
            'b' -> '\b'
            'f' -> '\u000c'
            'n' -> '\n'
            'r' -> '\r'
            't' -> '\t'
            'u' -> {
                val digits = text.substring(at, minOf(at + 4, text.length))
                if (!HEX.matcher(digits).matches()) wrong("four hexadecimal digits are needed")
                at += 4
                digits.toInt(16).toChar()
            }
            else -> wrong("an unknown escape")
        }
    }

    private fun number(): Any {
        val found = NUMBER.matcher(text).region(at, text.length)
        if (!found.lookingAt()) wrong("this is no value")
        at = found.end()
        val digits = found.group()
        if (digits.any { it in ".eE" }) {
            val value = digits.toDouble()
            if (value.isInfinite()) wrong("a number that is too large")
            return value
        }
        return digits.toLongOrNull() ?: wrong("a number that is too large")
    }

    private companion object {
        val HEX: Pattern = Pattern.compile("[0-9a-fA-F]{4}")
        val NUMBER: Pattern = Pattern.compile("-?(?:0|[1-9][0-9]*)(?:\\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
    }
}

/** JSON text of Map, Iterable, FloatArray, DoubleArray, String, numbers, Boolean and null; NaN is null. */
fun writeJson(value: Any?): String = StringBuilder().also { write(value, it) }.toString()

private fun write(value: Any?, to: StringBuilder) {
    when (value) {
        null -> to.append("null")
        is String -> quote(value, to)
        is Boolean, is Int, is Long -> to.append(value)
        is Float -> write(value.toDouble(), to)
        is Double -> if (value.isNaN() || value.isInfinite()) to.append("null") else to.append(value)
        is FloatArray -> numbers(value.size, to) { value[it].toDouble() }
        is DoubleArray -> numbers(value.size, to) { value[it] }
        is Map<*, *> -> {
            to.append('{')
            for ((i, entry) in value.entries.withIndex()) {
                if (i > 0) to.append(", ")
                quote(entry.key as String, to)
                to.append(": ")
                write(entry.value, to)
            }
            to.append('}')
        }
        is Iterable<*> -> {
            to.append('[')
            for ((i, item) in value.withIndex()) {
                if (i > 0) to.append(", ")
                write(item, to)
            }
            to.append(']')
        }
        else -> error("${value.javaClass} has no form in JSON")
    }
}

private inline fun numbers(count: Int, to: StringBuilder, at: (Int) -> Double) {
    to.append('[')
    for (i in 0 until count) {
        if (i > 0) to.append(", ")
        write(at(i), to)
    }
    to.append(']')
}

private fun quote(text: String, to: StringBuilder) {
    to.append('"')
    for (c in text) {
        when {
            c == '"' || c == '\\' -> to.append('\\').append(c)
            c < ' ' || c.isSurrogate() || c == '\u007f' -> to.append("\\u").append(c.code.toString(16).padStart(4, '0'))
            else -> to.append(c)
        }
    }
    to.append('"')
}

/** A value for a message, in a few words. */
fun shown(value: Any?): String = when (value) {
    is Map<*, *> -> if (value.isEmpty()) "an empty object" else "an object of ${value.size}"
    is List<*> -> if (value.isEmpty()) "an empty list" else "a list of ${value.size}"
    is String -> "'${if (value.length <= 58) value else value.take(55) + "..."}'"
    else -> value.toString()
}

/** A value from outside and where it stands; what it is asked for and is not becomes a Fault. */
class Item(private val value: Any?, private val path: String) {
    fun fault(problem: String): Nothing = throw Fault(if (path.isEmpty()) problem else "$path: $problem")

    fun text(): String = value as? String ?: fault("must be text, not ${shown(value)}")

    fun whole(least: Long = Long.MIN_VALUE): Long {
        val found = value as? Long ?: fault("must be a whole number, not ${shown(value)}")
        return if (found >= least) found else fault("must be at least $least, not $found")
    }

    /** A whole number that an Int holds, from 1 on. */
    fun count(): Int {
        val found = whole(1)
        return if (found <= Int.MAX_VALUE) found.toInt() else fault("is too large")
    }

    fun number(): Double = when (value) {
        is Long -> value.toDouble()
        is Double -> value
        else -> fault("must be a number, not ${shown(value)}")
    }

    fun truth(): Boolean = value as? Boolean ?: fault("must be true or false, not ${shown(value)}")

    fun <T> orNull(read: (Item) -> T): T? = if (value == null) null else read(this)

    fun <T> list(read: (Item) -> T): List<T> {
        val items = value as? List<*> ?: fault("must be a list, not ${shown(value)}")
        return items.mapIndexed { i, one -> read(Item(one, "$path[$i]")) }
    }

    fun numbers(): DoubleArray {
        val items = value as? List<*> ?: fault("must be a list, not ${shown(value)}")
        return DoubleArray(items.size) { Item(items[it], "$path[$it]").number() }
    }

    fun <T> map(read: (Item) -> T): Map<String, T> {
        val items = plainMap()
        return items.mapValues { (key, one) -> read(Item(one, below(key))) }
    }

    /** The object as it is: its keys are free. */
    @Suppress("UNCHECKED_CAST")
    fun plainMap(): Map<String, Any?> = value as? Map<String, Any?> ?: fault("must be an object, not ${shown(value)}")

    /** The object with these keys and no others. Optional ones that are missing are null. */
    fun fields(required: List<String>, optional: List<String> = emptyList()): Fields {
        val found = plainMap()
        for (key in found.keys) {
            if (key !in required && key !in optional) fault("has the unknown key ${shown(key)}")
        }
        val missing = required.filter { it !in found }
        if (missing.isNotEmpty()) fault("lacks ${missing.joinToString(", ")}")
        return Fields(found, this)
    }

    internal fun below(key: String) = if (path.isEmpty()) key else "$path.$key"
}

/** What Item.fields has found. */
class Fields(private val found: Map<String, Any?>, private val parent: Item) {
    operator fun get(key: String) = Item(found[key], parent.below(key))
}
