import Foundation

/// Something from outside that cannot be used; the message says what is wrong with it, and where.
public struct Fault: Error, Equatable, CustomStringConvertible {
    public let message: String

    public init(_ message: String) { self.message = message }

    public var description: String { message }
}

/// The largest file that is read, as in targets/strict.py.
public let maxBytes = 64_000_000
private let maxDepth = 100

/// JSON as it stands in a text. Whole numbers and others are told apart, as Python does.
public indirect enum Json: Equatable, Sendable {
    case null
    case truth(Bool)
    case whole(Int)
    case number(Double)
    case text(String)
    case list([Json])
    case object([String: Json])

    /// JSON text (UTF-8); the same texts as Python's json takes, but for NaN and infinities.
    /// Throws Fault for anything else, and for a key that stands in an object twice.
    public static func parse(_ content: [UInt8]) throws -> Json {
        if content.count > maxBytes { throw Fault("is larger than \(maxBytes) bytes") }
        guard isUtf8(content) else { throw Fault("is damaged, it is not UTF-8") }
        var parser = Parser(content)
        return try parser.whole()
    }

    /// A value for a message, in a few words.
    var shown: String {
        switch self {
        case .null: return "null"
        case .truth(let value): return String(value)
        case .whole(let value): return String(value)
        case .number(let value): return String(value)
        case .text(let value): return ClassifierKit.shown(value)
        case .list(let items): return items.isEmpty ? "an empty list" : "a list of \(items.count)"
        case .object(let items): return items.isEmpty ? "an empty object" : "an object of \(items.count)"
        }
    }

    /// JSON text; what is no number is null. Keys are sorted, so that the same value gives the same text.
    public var written: String {
        switch self {
        case .null: return "null"
        case .truth(let value): return String(value)
        case .whole(let value): return String(value)
        case .number(let value): return value.isFinite ? String(value) : "null"
        case .text(let value): return Json.quoted(value)
        case .list(let items): return "[" + items.map(\.written).joined(separator: ", ") + "]"
        case .object(let items):
            let members = items.sorted { $0.key < $1.key }.map { "\(Json.quoted($0.key)): \($0.value.written)" }
            return "{" + members.joined(separator: ", ") + "}"
        }
    }

    static func texts(_ values: [String: String]) -> Json { .object(values.mapValues(Json.text)) }

    static func orNull<T>(_ value: T?, _ made: (T) -> Json) -> Json { value.map(made) ?? .null }

    private static func quoted(_ text: String) -> String {
        var built = "\""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"", "\\": built += "\\" + String(scalar)
            case _ where scalar.value < 0x20 || scalar.value == 0x7f:
                let digits = String(scalar.value, radix: 16)
                built += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
            default: built.unicodeScalars.append(scalar)
            }
        }
        return built + "\""
    }
}

func shown(_ text: String) -> String {
    "'\(text.unicodeScalars.count <= 58 ? text : String(text.unicodeScalars.prefix(55)) + "...")'"
}

private func isUtf8(_ content: [UInt8]) -> Bool {
    var decoder = UTF8()
    var bytes = content.makeIterator()
    while true {
        switch decoder.decode(&bytes) {
        case .scalarValue: continue
        case .emptyInput: return true
        case .error: return false
        }
    }
}

private struct Parser {
    private let bytes: [UInt8]
    private var at = 0

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    mutating func whole() throws -> Json {
        let found = try value(0)
        space()
        if at < bytes.count { throw wrong("something follows the end") }
        return found
    }

    private func wrong(_ what: String) -> Fault { Fault("is damaged, it is not JSON (\(what), at byte \(at))") }

    private var next: UInt8? { at < bytes.count ? bytes[at] : nil }

    private mutating func space() {
        while let byte = next, byte == 0x20 || (0x09...0x0a).contains(byte) || byte == 0x0d { at += 1 }
    }

    private mutating func value(_ depth: Int) throws -> Json {
        if depth > maxDepth { throw wrong("nested too deeply") }
        space()
        switch next {
        case nil: throw wrong("it ends early")
        case UInt8(ascii: "{"): return try members(depth)
        case UInt8(ascii: "["): return try items(depth)
        case UInt8(ascii: "\""): return .text(try string())
        case UInt8(ascii: "t"): return try word("true", .truth(true))
        case UInt8(ascii: "f"): return try word("false", .truth(false))
        case UInt8(ascii: "n"): return try word("null", .null)
        default: return try number()
        }
    }

    private mutating func word(_ word: String, _ value: Json) throws -> Json {
        guard bytes[at...].starts(with: word.utf8) else { throw wrong("this is no value") }
        at += word.utf8.count
        return value
    }

    /// Whether an object or a list goes on, after the comma; `end` is passed over.
    private mutating func goesOn(_ end: Character, first: Bool) throws -> Bool {
        space()
        guard let byte = next else { throw wrong("it ends early") }
        if byte == end.asciiValue {
            at += 1
            return false
        }
        if !first {
            if byte != UInt8(ascii: ",") { throw wrong("a comma is missing") }
            at += 1
        }
        return true
    }

    private mutating func members(_ depth: Int) throws -> Json {
        at += 1
        var found: [String: Json] = [:]
        while try goesOn("}", first: found.isEmpty) {
            space()
            if next != UInt8(ascii: "\"") { throw wrong("a key is missing") }
            let key = try string()
            space()
            if next != UInt8(ascii: ":") { throw wrong("a colon is missing") }
            at += 1
            if found[key] != nil { throw wrong("the key \(shown(key)) stands there twice") }
            found[key] = try value(depth + 1)
        }
        return .object(found)
    }

    private mutating func items(_ depth: Int) throws -> Json {
        at += 1
        var found: [Json] = []
        while try goesOn("]", first: found.isEmpty) { found.append(try value(depth + 1)) }
        return .list(found)
    }

    private mutating func string() throws -> String {
        at += 1
        var built: [UInt8] = []
        while let byte = next {
            at += 1
            switch byte {
            case UInt8(ascii: "\""): return String(decoding: built, as: UTF8.self)
            case 0..<0x20: throw wrong("a control character in a text")
            case UInt8(ascii: "\\"): built += try escaped()
            default: built.append(byte)
            }
        }
        throw wrong("it ends early")
    }

    private mutating func escaped() throws -> [UInt8] {
        guard let byte = next else { throw wrong("it ends early") }
        at += 1
        switch Character(UnicodeScalar(byte)) {
        case "\"", "\\", "/": return [byte]
        case "b": return [0x08]
        case "f": return [0x0c]
        case "n": return [0x0a]
        case "r": return [0x0d]
        case "t": return [0x09]
        case "u":
            var code = UInt32(try hexadecimal())
            let isPair = (0xd800..<0xdc00).contains(code) && bytes[at...].starts(with: "\\u".utf8)
            if isPair {
                let before = at
                at += 2
                let low = UInt32(try hexadecimal())
                if (0xdc00..<0xe000).contains(low) {
                    code = 0x10000 + (code - 0xd800) << 10 + (low - 0xdc00)
                } else {
                    at = before
                }
            }
            // half a pair has no place in a Swift text
            return Array(String(UnicodeScalar(code) ?? "\u{fffd}").utf8)
        default: throw wrong("an unknown escape")
        }
    }

    private mutating func hexadecimal() throws -> UInt16 {
        let digits = bytes[at..<min(at + 4, bytes.count)]
        let hex = digits.allSatisfy { Character(UnicodeScalar($0)).isHexDigit }
        guard digits.count == 4, hex, let code = UInt16(String(decoding: digits, as: UTF8.self), radix: 16) else {
            throw wrong("four hexadecimal digits are needed")
        }
        at += 4
        return code
    }

    private mutating func digits() -> Int {
        let begin = at
        while let byte = next, (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) { at += 1 }
        return at - begin
    }

    private mutating func passed(_ choices: String) -> Bool {
        guard let byte = next, choices.utf8.contains(byte) else { return false }
        at += 1
        return true
    }

    private mutating func number() throws -> Json {
        let begin = at
        _ = passed("-")
        let zero = next == UInt8(ascii: "0")
        if digits() == 0 || (zero && bytes[begin..<at].filter { $0 != UInt8(ascii: "-") }.count > 1) {
            at = begin
            throw wrong("this is no value")
        }
        var isWhole = true
        if passed(".") {
            isWhole = false
            if digits() == 0 { throw wrong("this is no value") }
        }
        if passed("eE") {
            isWhole = false
            _ = passed("+-")
            if digits() == 0 { throw wrong("this is no value") }
        }
        let text = String(decoding: bytes[begin..<at], as: UTF8.self)
        if isWhole {
            guard let value = Int(text) else { throw wrong("a number that is too large") }
            return .whole(value)
        }
        guard let value = Double(text), value.isFinite else { throw wrong("a number that is too large") }
        return .number(value)
    }
}

/// A value from outside and where it stands; what it is asked for and is not becomes a Fault.
public struct Item {
    public let value: Json?
    private let path: String

    public init(_ value: Json?, _ path: String) {
        self.value = value
        self.path = path
    }

    func fault(_ problem: String) -> Fault { Fault(path.isEmpty ? problem : "\(path): \(problem)") }

    private func mustBe(_ what: String) -> Fault { fault("must be \(what), not \((value ?? .null).shown)") }

    public func text() throws -> String {
        if case .text(let found) = value { return found }
        throw mustBe("text")
    }

    public func whole(_ least: Int = Int.min) throws -> Int {
        guard case .whole(let found) = value else { throw mustBe("a whole number") }
        if found < least { throw fault("must be at least \(least), not \(found)") }
        return found
    }

    /// From 1 on, and such that products of some stay numbers.
    public func count() throws -> Int {
        let found = try whole(1)
        if found > Int(Int32.max) { throw fault("is too large") }
        return found
    }

    public func number() throws -> Double {
        switch value {
        case .whole(let found): return Double(found)
        case .number(let found): return found
        default: throw mustBe("a number")
        }
    }

    public func truth() throws -> Bool {
        if case .truth(let found) = value { return found }
        throw mustBe("true or false")
    }

    public func orNil<T>(_ read: (Item) throws -> T) throws -> T? {
        switch value {
        case nil, .null: return nil
        default: return try read(self)
        }
    }

    public func list<T>(_ read: (Item) throws -> T) throws -> [T] {
        guard case .list(let items) = value else { throw mustBe("a list") }
        return try items.enumerated().map { try read(Item($1, "\(path)[\($0)]")) }
    }

    public func numbers() throws -> [Double] { try list { try $0.number() } }

    public func map<T>(_ read: (Item) throws -> T) throws -> [String: T] {
        var found: [String: T] = [:]
        for (key, one) in try object() { found[key] = try read(Item(one, below(key))) }
        return found
    }

    /// The object as it is: its keys are free.
    public func object() throws -> [String: Json] {
        guard case .object(let found) = value else { throw mustBe("an object") }
        return found
    }

    /// The object with these keys and no others. Optional ones that are missing are nil.
    public func fields(_ required: [String], _ optional: [String] = []) throws -> [String: Item] {
        let found = try object()
        for key in found.keys.sorted() where !required.contains(key) && !optional.contains(key) {
            throw fault("has the unknown key \(ClassifierKit.shown(key))")
        }
        let missing = required.filter { found[$0] == nil }
        if !missing.isEmpty { throw fault("lacks \(missing.joined(separator: ", "))") }
        let names = required + optional
        return Dictionary(uniqueKeysWithValues: names.map { ($0, Item(found[$0], below($0))) })
    }

    /// A member of an object whose other keys are free.
    public func member(_ key: String) throws -> Item { Item(try object()[key], below(key)) }

    private func below(_ key: String) -> String { path.isEmpty ? key : "\(path).\(key)" }
}
