import Foundation

/// A job and its result: the contract of targets/devices/job.py. Names in JSON are the contract's.
public let jobName = "job.json"
public let resultName = "result.json"
public let goldenName = "golden.u8"
public let imagesName = "images.u8"
let memoryName = "memory"
private let jobVersion = 1

public struct Job: Sendable {
    public let id: String
    public let format: String
    /// artifacts in the folder, timed side by side; the first one is what is checked
    public let files: [String]
    public let sha256: [String: String]
    public let threads: Int
    public let height: Int
    public let width: Int
    public let classes: Int
    /// (G, C)
    public let golden: [[Double]]
    /// (N,)
    public let labels: [Int]
    /// nil: nothing is timed
    public let asked: Timing?
    public let memory: Bool

    /// Throws Fault.
    public init(_ content: [UInt8]) throws {
        do {
            try self.init(Json.parse(content))
        } catch let fault as Fault {
            throw Fault("\(jobName) is missing or not whole (\(fault.message)); repeat the command")
        }
    }

    /// The job in a folder, once every file of it is there and unchanged. Throws Fault naming one that is not.
    public init(in folder: URL) throws {
        guard let content = try? Data(contentsOf: folder.appendingPathComponent(jobName)) else {
            throw Fault("\(jobName) is missing or not whole (there is none); repeat the command")
        }
        try self.init([UInt8](content))
        for (name, digest) in sha256.sorted(by: { $0.key < $1.key })
        where ClassifierKit.sha256(of: folder.appendingPathComponent(name)) != digest {
            throw Fault("\(name) did not arrive whole; repeat the command")
        }
    }

    private init(_ json: Json) throws {
        let top = Item(json, "")
        let version = try? top.member("version")
        guard case .whole(jobVersion) = version?.value else {
            throw Fault("version is \((version?.value ?? .null).shown), this app reads \(jobVersion)")
        }
        let fields = try top.fields(
            ["version", "id", "format", "files", "sha256", "threads", "height", "width", "classes"],
            ["golden", "labels", "protocol", "memory"]
        )
        id = try fields["id"]!.text()
        format = try fields["format"]!.text()
        files = try fields["files"]!.list { try $0.text() }
        sha256 = try fields["sha256"]!.map { try $0.text() }
        threads = try fields["threads"]!.count()
        height = try fields["height"]!.count()
        width = try fields["width"]!.count()
        classes = try fields["classes"]!.count()
        golden = fields["golden"]!.value == nil ? [] : try fields["golden"]!.list { try $0.numbers() }
        labels = fields["labels"]!.value == nil ? [] : try fields["labels"]!.list { try $0.whole(0) }
        asked = try fields["protocol"]!.orNil(Job.asked)
        memory = fields["memory"]!.value == nil ? false : try fields["memory"]!.truth()
        for name in files + sha256.keys {
            let own = ["", ".", "..", jobName, resultName].contains(name)
            if own || name.utf8.contains(where: { "/\\".utf8.contains($0) }) || !isPrintable(name) {
                throw Fault("\(shown(name)) is no name of a job's file")
            }
        }
        if files.isEmpty || Set(files).count != files.count || !files.allSatisfy({ sha256[$0] != nil }) {
            throw Fault("a job needs at least one artifact, each named once and with its checksum")
        }
        if golden.contains(where: { $0.count != classes }) { throw Fault("golden must have \(classes) logits a row") }
        if labels.contains(where: { $0 >= classes }) { throw Fault("labels must be from 0 to \(classes - 1)") }
    }

    private static func asked(_ item: Item) throws -> Timing {
        let fields = try item.fields(["name", "seconds", "min_samples", "warmup", "cooldown_s"])
        let found = Timing(
            name: try fields["name"]!.text(),
            seconds: try fields["seconds"]!.number(),
            minSamples: try fields["min_samples"]!.count(),
            warmup: try fields["warmup"]!.whole(0),
            cooldownS: try fields["cooldown_s"]!.number()
        )
        if found.seconds < 0 || found.cooldownS < 0 { throw item.fault("no time is below 0") }
        return found
    }

    /// Pictures of golden.u8 or images.u8, RGB (H, W, 3). Throws Fault.
    func pictures(_ folder: URL, _ name: String) throws -> [[UInt8]] {
        let count = name == goldenName ? golden.count : labels.count
        if count == 0 { return [] }
        let size = height * width * 3
        guard let data = try? Data(contentsOf: folder.appendingPathComponent(name), options: .alwaysMapped),
            data.count >= count * size
        else { throw Fault("\(name) did not arrive whole; repeat the command") }
        return (0..<count).map { [UInt8](data[($0 * size)..<(($0 + 1) * size)]) }
    }
}

/// What a device is; nil: it does not tell.
public struct Description: Sendable {
    public let device: String
    public let os: String
    public let cpu: String?
    public let cores: Int?
    public let arch: String?
    /// by what, where the device is not a real one
    public let emulated: String?

    public init(device: String, os: String, cpu: String?, cores: Int?, arch: String?, emulated: String?) {
        (self.device, self.os, self.cpu, self.cores) = (device, os, cpu, cores)
        (self.arch, self.emulated) = (arch, emulated)
    }

    var json: Json {
        .object([
            "device": .text(device),
            "os": .text(os),
            "cpu": .orNull(cpu, Json.text),
            "cores": .orNull(cores, Json.whole),
            "arch": .orNull(arch, Json.text),
            "emulated": .orNull(emulated, Json.text),
        ])
    }
}

/// ProcessInfo's thermal state, in its order.
public enum ThermalState: Int, Sendable, CaseIterable {
    case nominal, fair, serious, critical

    public var word: String { String(describing: self) }

    /// From here on a phone slows down.
    public var slowsDown: Bool { rawValue >= ThermalState.serious.rawValue }
}

/// What may slow a phone down; nil: it does not tell.
public struct Conditions: Sendable, Equatable {
    public let battery: String?
    public let lowPower: Bool?
    public let thermal: ThermalState?

    public init(battery: String?, lowPower: Bool?, thermal: ThermalState?) {
        (self.battery, self.lowPower, self.thermal) = (battery, lowPower, thermal)
    }

    /// Apple tells no temperature.
    var json: Json {
        .object([
            "governor": .null,
            "temperature_c": .null,
            "throttled": .null,
            "battery": .orNull(battery, Json.text),
            "battery_saver": .orNull(lowPower, Json.truth),
        ])
    }

    /// Why a time between these two does not count; nil if nothing is known against it.
    public static func heldBack(_ before: Conditions, _ after: Conditions) -> String? {
        let states = [before.thermal, after.thermal].compactMap { $0 }
        if let worst = states.max(by: { $0.rawValue < $1.rawValue }), worst.slowsDown {
            return "the phone was too hot (thermal status \(worst.word)) and slows down"
        }
        if before.lowPower == true || after.lowPower == true { return "its battery saver was on" }
        return nil
    }
}

/// What one device found of one artifact; see DeviceResult in targets/devices/job.py. nil, or empty: not measured.
public struct DeviceResult: Sendable {
    public var job: String
    public var file: String
    public var sha256: String
    public var device: Description
    public var threads: Int
    public var runtime = ""
    public var runtimeVersion = ""
    public var refused: String?
    public var before: Conditions?
    public var after: Conditions?
    public var golden: [[Float]] = []
    public var goldenError: Double?
    public var logits: [[Float]] = []
    public var top1: Double?
    public var latency: [String: LatencyResult] = [:]
    public var peakMb: Double?
    public var unmeasured: [String: String] = [:]

    public var json: Json {
        func rows(_ rows: [[Float]]) -> Json { .list(rows.map { .list($0.map { .number(Double($0)) }) }) }
        return .object([
            "version": .whole(jobVersion),
            "job": .text(job),
            "file": .text(file),
            "sha256": .text(sha256),
            "device": device.json,
            "threads": .whole(threads),
            "runtime": .text(runtime),
            "runtime_version": .text(runtimeVersion),
            "refused": .orNull(refused, Json.text),
            "before": before?.json ?? .object([:]),
            "after": after?.json ?? .object([:]),
            "golden": rows(golden),
            "golden_error": .orNull(goldenError, Json.number),
            "logits": rows(logits),
            "top1": .orNull(top1, Json.number),
            "latency": .object(latency.mapValues(\.json)),
            "peak_mb": .orNull(peakMb, Json.number),
            "unmeasured": .texts(unmeasured),
        ])
    }
}

/// A file of a job's folder, written in one step.
public func write(_ json: Json, _ path: URL) throws {
    try Data((json.written + "\n").utf8).write(to: path, options: .atomic)
}
