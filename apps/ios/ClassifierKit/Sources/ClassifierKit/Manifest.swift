import Foundation

/// manifest.json beside the model: all that this app knows of it. See targets/manifest.py.
public let manifestName = "manifest.json"

private let manifestVersion = 2

public enum Role: String, CaseIterable, Sendable {
    case pruned, dense
}

/// Of the input, and how to make it from a picture.
public struct InputSpec: Sendable {
    public let height: Int
    public let width: Int
    public let color: String
    public let range: (Double, Double)
    /// as the manifest has it; ResizeRule reads what this app needs
    public let resize: [String: Json]
}

public struct ArtifactFile: Sendable {
    /// path relative to the manifest's folder; a folder where the format's artifacts are some (.mlpackage)
    public let file: String
    public let format: String
    public let precision: String
    public let role: Role
    public let sizeBytes: Int
    public let sha256: String
    public let layout: String
    public let dtype: String
    public let minimumRuntime: String?
    public let measured: Measured?
}

/// What the gate found, as far as the card shows it; nothing that it does not understand.
public struct Measured: Sendable {
    private let plain: [String: Json]

    init(_ plain: [String: Json]) { self.plain = plain }

    private func item(_ key: String) -> Item { Item(plain[key], key) }

    /// percent
    public var top1: Double? { try? item("top1").number() }
    public var verdict: String { (try? item("verdict").text()) ?? "not_measured" }
    public var runtime: String? { try? item("runtime").text() }
    public var device: String? { try? item("device").member("device").text() }

    public var checks: [Check] {
        let found = try? item("checks").list { check -> Check? in
            guard let name = try? check.member("name").text(), let limit = try? check.member("limit").number(),
                let verdict = try? check.member("verdict").text()
            else { return nil }
            return Check(name: name, limit: limit, value: try? check.member("value").number(), verdict: verdict)
        }
        return (found ?? []).compactMap { $0 }
    }
}

/// One line of a budget.
public struct Check: Sendable, Equatable {
    public let name: String
    public let limit: Double
    /// nil: not measured
    public let value: Double?
    public let verdict: String
}

/// A picture of the input's size, with its logits.
public struct Golden: Sendable {
    public let file: String
    public let sha256: String
    /// of the float32 PyTorch model
    public let model: [Double]
    /// of every pruned artifact, by file, where it was made
    public let artifacts: [String: [Double]]
}

public struct Manifest: Sendable {
    public let model: String
    public let dataset: String
    public let target: String
    public let labels: [String]
    public let input: InputSpec
    public let files: [ArtifactFile]
    public let golden: [Golden]
    public let goldenShare: [String: Double]?
    public let params: Int?
    public let paramsDense: Int?
    public let tools: [String: String]?

    /// The file of a format in a role.
    public func file(_ format: String, _ role: Role) -> ArtifactFile? {
        files.first { $0.format == format && $0.role == role }
    }

    /// Throws Fault: `manifest.json: where: what`.
    public init(_ content: [UInt8]) throws {
        do {
            try self.init(Json.parse(content))
        } catch let fault as Fault {
            throw Fault("\(manifestName): \(fault.message)")
        }
    }

    private init(_ json: Json) throws {
        let top = Item(json, "")
        let version = try? top.member("manifest_version")
        guard case .whole(manifestVersion) = version?.value else {
            throw Fault("manifest_version is \((version?.value ?? .null).shown), this app reads \(manifestVersion)")
        }
        let fields = try top.fields(
            ["manifest_version", "model", "dataset", "target", "labels", "input", "files"],
            ["golden", "golden_share", "params", "params_dense", "tools"]
        )
        model = try fields["model"]!.text()
        dataset = try fields["dataset"]!.text()
        target = try fields["target"]!.text()
        labels = try fields["labels"]!.list { try $0.text() }
        input = try Manifest.input(fields["input"]!)
        files = try fields["files"]!.list(Manifest.file)
        golden = fields["golden"]!.value == nil ? [] : try fields["golden"]!.list(Manifest.golden)
        goldenShare = try fields["golden_share"]!.orNil { try $0.map { try $0.number() } }
        params = try fields["params"]!.orNil { try $0.whole() }
        paramsDense = try fields["params_dense"]!.orNil { try $0.whole() }
        tools = try fields["tools"]!.orNil { try $0.map { try $0.text() } }
        try agree()
    }

    private static func input(_ item: Item) throws -> InputSpec {
        let fields = try item.fields(["height", "width", "color", "range", "resize"])
        let range = try fields["range"]!.numbers()
        if range.count != 2 || range[0] >= range[1] { throw item.fault("range must be two numbers that rise") }
        return InputSpec(
            height: try fields["height"]!.count(),
            width: try fields["width"]!.count(),
            color: try fields["color"]!.text(),
            range: (range[0], range[1]),
            resize: try fields["resize"]!.object()
        )
    }

    private static func file(_ item: Item) throws -> ArtifactFile {
        let fields = try item.fields(
            ["file", "format", "precision", "role", "size_bytes", "sha256", "layout", "dtype"],
            ["minimum_runtime", "measured"]
        )
        let name = try fields["role"]!.text()
        guard let role = Role(rawValue: name) else {
            throw item.fault("role is \(shown(name)), not one of pruned, dense")
        }
        return ArtifactFile(
            file: try beside(fields["file"]!),
            format: try fields["format"]!.text(),
            precision: try fields["precision"]!.text(),
            role: role,
            sizeBytes: try fields["size_bytes"]!.whole(0),
            sha256: try checksum(fields["sha256"]!),
            layout: try fields["layout"]!.text(),
            dtype: try fields["dtype"]!.text(),
            minimumRuntime: try fields["minimum_runtime"]!.orNil { try $0.text() },
            measured: try fields["measured"]!.orNil { Measured(try $0.object()) }
        )
    }

    private static func golden(_ item: Item) throws -> Golden {
        let fields = try item.fields(["file", "sha256", "model", "artifacts"])
        return Golden(
            file: try beside(fields["file"]!),
            sha256: try checksum(fields["sha256"]!),
            model: try fields["model"]!.numbers(),
            artifacts: try fields["artifacts"]!.map { try $0.numbers() }
        )
    }

    /// A manifest may come from elsewhere: it must not name files outside its own folder, nor itself.
    private static func beside(_ item: Item) throws -> String {
        let path = try item.text()
        // by bytes: a letter of Swift may be a / and an accent
        let parts = path.utf8.split(separator: UInt8(ascii: "/"), omittingEmptySubsequences: false).map(String.init)
        let isPlace = parts.contains { ["", ".", ".."].contains($0) }
        let plain = isPrintable(path) && !path.utf8.contains(UInt8(ascii: "\\")) && !isPlace
        if !plain { throw item.fault("\(shown(path)) does not lie beside the manifest") }
        if parts[0]?.lowercased() == manifestName { throw item.fault("\(shown(path)) is the manifest itself") }
        return path
    }

    private static func checksum(_ item: Item) throws -> String {
        let text = try item.text()
        let digits = text.utf8.allSatisfy { "0123456789abcdef".utf8.contains($0) }
        if text.utf8.count != 64 || !digits { throw item.fault("\(shown(text)) is not a SHA-256") }
        return text
    }

    private func agree() throws {
        if labels.isEmpty || files.isEmpty { throw Fault("a manifest needs at least one label and one file") }
        let names = files.map(\.file) + golden.map(\.file)
        if Set(names).count != names.count { throw Fault("a manifest names each file once") }
        for golden in golden {
            for row in Array(golden.artifacts.values) + [golden.model] where row.count != labels.count {
                throw Fault("\(golden.file) has \(row.count) logits for \(labels.count) labels")
            }
            if let unknown = golden.artifacts.keys.sorted().first(where: { !names.contains($0) }) {
                throw Fault("\(golden.file) has logits of \(unknown), which is no file of the manifest")
            }
        }
    }
}

/// Whether a screen or a file name takes a text for nothing else; as str.isprintable of Python.
func isPrintable(_ text: String) -> Bool {
    text.unicodeScalars.allSatisfy { scalar in
        if scalar == " " { return true }
        switch scalar.properties.generalCategory {
        case .control, .format, .surrogate, .privateUse, .unassigned, .lineSeparator, .paragraphSeparator,
            .spaceSeparator:
            return false
        default: return true
        }
    }
}

/// SHA-256 of a file, or of a folder as targets.artifact.sha256_of has it; "" if there is none.
public func sha256(of path: URL) -> String {
    let files = FileManager.default
    var isFolder: ObjCBool = false
    guard files.fileExists(atPath: path.path, isDirectory: &isFolder) else { return "" }
    var digest = Sha256()
    if isFolder.boolValue {
        let names = (files.subpaths(atPath: path.path) ?? []).filter { name in
            var inner: ObjCBool = false
            return files.fileExists(atPath: path.appendingPathComponent(name).path, isDirectory: &inner)
                && !inner.boolValue
        }
        let inner = names.map { $0.split(separator: "/").map(String.init) }.sorted { $0.lexicographicallyPrecedes($1) }
        for name in inner.map({ $0.joined(separator: "/") }) {
            digest.update("\(sha256(of: path.appendingPathComponent(name))) \(name)\n".utf8)
        }
        return digest.hex()
    }
    guard let file = try? FileHandle(forReadingFrom: path) else { return "" }
    defer { try? file.close() }
    while let part = try? file.read(upToCount: 1 << 20), !part.isEmpty { digest.update(part) }
    return digest.hex()
}
