import Foundation

/// What Core ML may use; it chooses among them for each operation.
public enum ComputeUnits: String, CaseIterable, Sendable {
    case all, cpuAndNeuralEngine, cpuAndGpu, cpuOnly

    public var label: String {
        switch self {
        case .all: return "All"
        case .cpuAndNeuralEngine: return "Neural Engine"
        case .cpuAndGpu: return "GPU"
        case .cpuOnly: return "CPU"
        }
    }
}

/// How many operations are planned on each of a device's processors; constants are not counted, and nor is their cost.
public struct Placement: Sendable, Equatable {
    public let neuralEngine: Int
    public let gpu: Int
    public let cpu: Int

    public init(neuralEngine: Int, gpu: Int, cpu: Int) {
        (self.neuralEngine, self.gpu, self.cpu) = (neuralEngine, gpu, cpu)
    }

    public var words: String {
        let parts = [(neuralEngine, "the Neural Engine"), (gpu, "the GPU"), (cpu, "the CPU")]
        let used = parts.filter { $0.0 > 0 }.map { "\($0.0) on \($0.1)" }
        return used.isEmpty ? "no operation" : "operations: " + used.joined(separator: ", ")
    }
}

/// What runs artifacts of one format.
public protocol Engine: Sendable {
    /// a key of FORMATS in targets/formats.py
    var format: String { get }
    var runtime: String { get }
    var version: String { get }

    /// Throws Refused for what is no sound artifact.
    func load(_ file: URL, _ units: ComputeUnits) async throws -> any Program
}

/// A loaded artifact.
public protocol Program: Sendable {
    /// nil: the system does not tell
    var placement: Placement? { get }

    /// One inference of RGB (H, W, 3) 0..255, giving logits; making it is not timed. Both throw Refused.
    func prepare(_ picture: [UInt8]) throws -> () throws -> [Float]
}

extension Program {
    func logits(_ picture: [UInt8]) throws -> [Float] { try prepare(picture)() }
}

/// The runtime does not load an artifact, or does not run it.
public struct Refused: Error, Equatable {
    public let message: String

    public init(_ message: String) { self.message = message }
}

/// What a device says of itself.
public protocol Device: Sendable {
    func describe() async -> Description
    func conditions() async -> Conditions
    /// Why a time that was taken since the last call does not count, beside heat and low-power mode.
    func disturbed() async -> String?
    /// This process's memory now, and at its most so far, MB of 1e6 bytes; nil where the system does not tell.
    func memoryMb() -> (now: Double, peak: Double)?
}

public typealias Tell = @Sendable (_ what: String, _ done: Int, _ total: Int) -> Void

private let memoryInferences = 3

/// Do the job whose files are in the folder, as `run` in targets/devices/measure.py does. An artifact that the runtime
/// refuses is a result; one that it was to be compared with is left out then. Throws Fault.
public func work(
    _ job: Job, _ folder: URL, _ engine: any Engine, _ host: any Device, _ units: ComputeUnits,
    _ progress: @escaping Tell
) async throws -> DeviceResult {
    let name = job.files[0]
    let found = DeviceResult(
        job: job.id, file: name, sha256: sha256(of: folder.appendingPathComponent(name)),
        device: await host.describe(), threads: job.threads
    )
    do {
        return try await worked(job, folder, engine, host, units, found, progress)
    } catch let refused as Refused {
        var result = found
        result.refused = refused.message
        return result
    }
}

private func worked(
    _ job: Job, _ folder: URL, _ engine: any Engine, _ host: any Device, _ units: ComputeUnits, _ begun: DeviceResult,
    _ progress: @escaping Tell
) async throws -> DeviceResult {
    var result = begun
    let name = result.file
    let emulated = result.device.emulated
    let goldens = try job.pictures(folder, goldenName)
    if (job.asked != nil || job.memory) && goldens.isEmpty { throw Fault("what is timed needs a golden picture") }
    if job.format != engine.format { throw Fault("this app runs \(engine.format), not \(job.format)") }
    // First of all, so that nothing else is in this process's memory yet.
    if job.memory && emulated == nil {
        result.peakMb = try await growthMb(engine, folder.appendingPathComponent(name), units, goldens[0], host)
        if result.peakMb == nil { result.unmeasured[memoryName] = "iOS does not tell a process's peak memory here" }
    }
    var programs: [(name: String, program: any Program)] = []
    for (i, file) in job.files.enumerated() {
        progress("loading", i, job.files.count)
        do {
            let program = try await engine.load(folder.appendingPathComponent(file), units)
            if let first = goldens.first { _ = try program.logits(first) }
            programs.append((file, program))
        } catch let refused as Refused where file != name {
            result.unmeasured[file] = refused.message
        }
    }
    let program = programs[0].program
    result.runtime = engine.runtime
    result.runtimeVersion = ([engine.version] + [program.placement?.words].compactMap { $0 }).joined(separator: "; ")
    result.golden = try goldens.map(program.logits)
    let images = try job.pictures(folder, imagesName)
    for (i, picture) in images.enumerated() {
        result.logits.append(try program.logits(picture))
        progress("images", i + 1, images.count)
    }
    let before = await host.conditions()
    _ = await host.disturbed()
    if let asked = job.asked {
        let kept = emulated == nil ? asked : .emulated
        result.latency = try time(programs, goldens[0], kept) { seconds in
            progress("latency", Int(min(seconds, kept.seconds)), Int(kept.seconds))
        }
    }
    let disturbed = await host.disturbed()
    let after = await host.conditions()
    let why = emulated.map { "\($0) emulates this device" } ?? disturbed ?? Conditions.heldBack(before, after)
    if let why { result.latency = result.latency.mapValues { $0.invalid(why) } }
    (result.before, result.after) = (before, after)
    result.goldenError = job.golden.isEmpty ? nil : largestDifference(result.golden, job.golden)
    result.top1 = job.labels.isEmpty ? nil : top1(result.logits, job.labels)
    return result
}

/// Latency of programs side by side on one picture; its preparation is not counted.
func time(
    _ programs: [(name: String, program: any Program)], _ picture: [UInt8], _ asked: Timing,
    _ progress: (Double) throws -> Void = { _ in }
) throws -> [String: LatencyResult] {
    let callables = try programs.map { one in
        let inference = try one.program.prepare(picture)
        return (name: one.name, run: { _ = try inference() })
    }
    return try measure(callables, asked, progress)
}

/// What loading an artifact and some inferences add to this process's memory at most, MB of 1e6 bytes; what the Neural
/// Engine holds outside the process does not count.
private func growthMb(
    _ engine: any Engine, _ file: URL, _ units: ComputeUnits, _ picture: [UInt8], _ host: any Device
) async throws -> Double? {
    guard let before = host.memoryMb() else { return nil }
    let program = try await engine.load(file, units)
    for _ in 0..<memoryInferences { _ = try program.logits(picture) }
    return host.memoryMb().map { max(0, $0.peak - before.now) }
}
