import Foundation
import Observation

/// Where the manifest and the files beside it are read from.
public protocol Models: Sendable {
    /// Throws Fault.
    func manifest() throws -> Manifest
    /// A file that the manifest names; an artifact may be a folder.
    func file(_ name: String) -> URL
    /// The pixels of a golden picture, RGB (H, W, 3). Throws Fault.
    func golden(_ name: String) throws -> [UInt8]
}

/// What a camera cannot do.
public enum CameraProblem: Error, Equatable, Sendable {
    /// only the settings can change it
    case denied
    case none
    case failed(String)

    var words: String {
        switch self {
        case .denied: return "The camera may not be used. Photos work without it."
        case .none: return "This device has no camera. Photos work without it."
        case .failed(let why): return "The camera has failed (\(why)). Press Camera to try again."
        }
    }
}

@MainActor public protocol Camera: AnyObject {
    /// Frames until `stop`; only the newest waits. Throws CameraProblem.
    func start() async throws -> AsyncStream<Picture>
    func stop()
}

/// One of the likeliest classes.
public struct Answer: Sendable, Equatable, Identifiable {
    public let id: Int
    public let label: String
    public let share: Double
}

/// A line of what pruning bought.
public struct Bought: Sendable, Equatable, Identifiable {
    public let id: String
    public let gain: String
    public let dense: String
    public let pruned: String
}

/// What the check has found.
public struct CheckResult: Sendable {
    public let golden: GoldenCheck
    public let times: [Role: LatencyResult]
    public let before: Conditions
    public let after: Conditions
    public let heldBack: String?
    public let placement: Placement?
}

/// The programs of a model, away from the screen.
actor Worker {
    let models: any Models
    let engine: any Engine
    let host: any Device
    private var programs: [Role: any Program] = [:]
    private var rule: ResizeRule?

    struct Loaded: Sendable {
        let manifest: Manifest
        let roles: [Role]
        let golden: GoldenCheck
        let placement: Placement?
        let first: [UInt8]?
    }

    init(_ models: any Models, _ engine: any Engine, _ host: any Device) {
        (self.models, self.engine, self.host) = (models, engine, host)
    }

    /// Throws Fault, Refused.
    func load(_ units: ComputeUnits) async throws -> Loaded {
        programs = [:]
        let manifest = try models.manifest()
        rule = try ResizeRule(manifest.input)
        guard let pruned = manifest.file(engine.format, .pruned) else {
            throw Fault("\(manifestName) has no model for \(engine.runtime)")
        }
        for file in [pruned, manifest.file(engine.format, .dense)].compactMap({ $0 }) {
            if sha256(of: models.file(file.file)) != file.sha256 { throw Fault("\(file.file) is missing or damaged") }
            do {
                programs[file.role] = try await engine.load(models.file(file.file), units)
            } catch let refused as Refused where file.role == .dense {
                // the product is the pruned one
                _ = refused
            }
        }
        let pictures = try manifest.golden.map { try models.golden($0.file) }
        let golden = GoldenCheck(manifest, pruned.file, try pictures.map(programs[.pruned]!.logits))
        return Loaded(
            manifest: manifest, roles: Role.allCases.filter { programs[$0] != nil }, golden: golden,
            placement: programs[.pruned]!.placement, first: pictures.first
        )
    }

    /// Logits and the milliseconds of the inference. Throws Refused.
    func ask(_ picture: Picture, _ role: Role) throws -> (logits: [Float], ms: Double) {
        guard let rule else { throw Refused("no model is loaded") }
        return try ask(pixels: resize(picture, rule), role)
    }

    func ask(pixels: [UInt8], _ role: Role) throws -> (logits: [Float], ms: Double) {
        guard let program = programs[role] else { throw Refused("no model is loaded") }
        let inference = try program.prepare(pixels)
        let clock = ContinuousClock()
        let begin = clock.now
        let logits = try inference()
        return (logits, Double(nanoseconds(clock.now - begin)) / 1e6)
    }

    /// Times of all models side by side. Throws Refused, and what `progress` throws.
    func times(
        _ pixels: [UInt8], _ asked: Timing, _ progress: @Sendable (Double) throws -> Void = { _ in }
    ) throws -> [Role: LatencyResult] {
        let named = Role.allCases.compactMap { role in programs[role].map { (name: role.rawValue, program: $0) } }
        let found = try time(named, pixels, asked, progress)
        return Dictionary(uniqueKeysWithValues: found.map { (Role(rawValue: $0.key)!, $0.value) })
    }

    /// Throws Fault, Refused, CancellationError.
    func check(_ loaded: Loaded, _ asked: Timing, _ tell: @Sendable (Double) -> Void) async throws -> CheckResult {
        guard let program = programs[.pruned], let first = loaded.first,
            let file = loaded.manifest.file(engine.format, .pruned)
        else { throw Fault("the manifest has no golden pictures to check with") }
        let pictures = try loaded.manifest.golden.map { try models.golden($0.file) }
        let golden = GoldenCheck(loaded.manifest, file.file, try pictures.map(program.logits))
        let before = await host.conditions()
        _ = await host.disturbed()
        let taken = try times(first, asked) { seconds in
            try Task.checkCancellation()
            tell(seconds)
        }
        let disturbed = await host.disturbed()
        let after = await host.conditions()
        let why =
            await host.describe().emulated.map { "\($0) emulates this device" }
            ?? disturbed ?? Conditions.heldBack(before, after)
        return CheckResult(
            golden: golden, times: why.map { why in taken.mapValues { $0.invalid(why) } } ?? taken, before: before,
            after: after, heldBack: why, placement: program.placement
        )
    }
}

/// The camera or a photo, and what the model says of it: all that the screens show.
@Observable @MainActor public final class Classifier {
    public enum State: Equatable { case loading, ready, failed(String) }

    public private(set) var state = State.loading
    public private(set) var manifest: Manifest?
    public private(set) var roles: [Role] = []
    public private(set) var golden: GoldenCheck?
    /// what Core ML has planned for the pruned model
    public private(set) var placement: Placement?
    public private(set) var notice: String?
    /// whether only the system's settings can help
    public private(set) var needsSettings = false
    public private(set) var answers: [Answer] = []
    /// nil: the golden picture, which no file shows
    public private(set) var picture: Picture?
    public private(set) var p50Ms: Double?
    public private(set) var p90Ms: Double?
    public private(set) var picturesPerSecond: Double?
    public private(set) var bought: [Bought] = []
    public private(set) var boughtDoubt: String?
    public private(set) var conditions: Conditions?
    public private(set) var isLive = false
    public private(set) var role = Role.pruned
    public private(set) var units = ComputeUnits.all
    public private(set) var checking: Double?
    public private(set) var checked: CheckResult?
    public private(set) var checkProblem: String?

    public let runtime: String
    private let worker: Worker
    private let camera: any Camera
    private let host: any Device
    private var loaded: Worker.Loaded?
    private var takenMs: [Double] = []
    private var framesAt: [ContinuousClock.Instant] = []
    private var frames: Task<Void, Never>?
    private var check: Task<Void, Never>?

    private static let shown = 5
    private static let kept = 100
    private static let glance = Timing(name: "glance", seconds: 0, minSamples: 20, warmup: 3, cooldownS: 0)

    public init(models: any Models, engine: any Engine, camera: any Camera, host: any Device) {
        worker = Worker(models, engine, host)
        runtime = "\(engine.runtime) \(engine.version)"
        self.camera = camera
        self.host = host
    }

    // the model

    /// Load the model for these compute units; what was asked last is asked again.
    public func load(_ units: ComputeUnits = .all) async {
        stopCamera()
        self.units = units
        state = .loading
        notice = nil
        forget()
        do {
            let found = try await worker.load(units)
            (loaded, manifest, roles) = (found, found.manifest, found.roles)
            (golden, placement) = (found.golden, found.placement)
            if !roles.contains(role) { role = .pruned }
            state = .ready
            if found.golden.verdict == .bad { notice = Classifier.distrust(found.golden) }
            await ask()
            await lookAtBoth(found)
        } catch {
            state = .failed("The model cannot be used: \(Classifier.words(error))")
        }
        conditions = await host.conditions()
    }

    public func choose(_ role: Role) async {
        if role == self.role || !roles.contains(role) { return }
        self.role = role
        forget()
        if !isLive { await ask() }
    }

    private func forget() {
        takenMs = []
        framesAt = []
        (p50Ms, p90Ms, picturesPerSecond) = (nil, nil, nil)
    }

    // pictures

    /// A photo that the user has chosen; nil: it could not be read.
    public func show(_ photo: Picture?) async {
        stopCamera()
        guard let photo else {
            notice = "This file is no picture that this phone can read."
            return
        }
        notice = nil
        forget()
        picture = photo
        await ask()
    }

    /// Ask the model about the photo, or about the first golden picture while there is none.
    private func ask() async {
        guard state == .ready else { return }
        do {
            if let picture {
                take(try await worker.ask(picture, role))
            } else if let first = loaded?.first {
                take(try await worker.ask(pixels: first, role))
            }
        } catch {
            notice = "The model cannot be used: \(Classifier.words(error))"
        }
    }

    private func take(_ found: (logits: [Float], ms: Double)) {
        guard let labels = manifest?.labels, labels.count == found.logits.count else { return }
        let shares = softmax(found.logits)
        answers = best(found.logits, Classifier.shown).map {
            Answer(id: $0, label: Format.label(labels[$0]), share: Double(shares[$0]))
        }
        takenMs = (takenMs + [found.ms]).suffix(Classifier.kept)
        let sorted = takenMs.sorted()
        (p50Ms, p90Ms) = (percentile(sorted, 0.5), percentile(sorted, 0.9))
    }

    // the camera

    public func startCamera() async {
        if isLive || state != .ready { return }
        notice = nil
        needsSettings = false
        forget()
        let stream: AsyncStream<Picture>
        do {
            isLive = true
            stream = try await camera.start()
        } catch {
            isLive = false
            let problem = error as? CameraProblem ?? .failed("\(error)")
            notice = problem.words
            needsSettings = problem == .denied
            return
        }
        frames = Task { [weak self] in
            for await frame in stream {
                guard let self, self.isLive else { return }
                await self.take(frame)
            }
            self?.stopCamera()
        }
    }

    public func stopCamera() {
        isLive = false
        frames?.cancel()
        frames = nil
        camera.stop()
    }

    private func take(_ frame: Picture) async {
        do {
            let found = try await worker.ask(frame, role)
            guard isLive else { return }
            picture = frame
            take(found)
            framesAt = (framesAt + [ContinuousClock().now]).suffix(Classifier.kept)
            let span = Double(nanoseconds(framesAt[framesAt.count - 1] - framesAt[0])) / 1e9
            picturesPerSecond = span > 0 ? Double(framesAt.count - 1) / span : nil
            conditions = await host.conditions()
        } catch {
            stopCamera()
            notice = "The model cannot be used: \(Classifier.words(error))"
        }
    }

    // what pruning bought

    /// A short look at both in turn.
    private func lookAtBoth(_ found: Worker.Loaded) async {
        bought = []
        boughtDoubt = nil
        guard roles.contains(.dense), let first = found.first else { return }
        guard let times = try? await worker.times(first, Classifier.glance),
            let slow = times[.dense], let fast = times[.pruned]
        else { return }
        let format = worker.engine.format
        let (dense, pruned) = (found.manifest.file(format, .dense)!, found.manifest.file(format, .pruned)!)
        let gain =
            slow.p50Ms >= fast.p50Ms
            ? "\(Format.digits(slow.p50Ms / fast.p50Ms)) × faster"
            : "\(Format.digits(fast.p50Ms / slow.p50Ms)) × slower"
        func row(_ name: String, _ gain: String, _ dense: String, _ pruned: String) {
            bought.append(Bought(id: name, gain: gain, dense: dense, pruned: pruned))
        }
        row("Time, measured here", gain, Format.milliseconds(slow.p50Ms), Format.milliseconds(fast.p50Ms))
        let (large, small) = (Double(dense.sizeBytes), Double(pruned.sizeBytes))
        row("Size", Format.change(large, small), Format.bytes(large), Format.bytes(small))
        if let now = found.manifest.params.map(Double.init), let was = found.manifest.paramsDense.map(Double.init) {
            row("Parameters", Format.change(was, now), Format.count(was), Format.count(now))
        }
        if let right = dense.measured?.top1, let still = pruned.measured?.top1 {
            let (before, after) = (Format.percent(right / 100), Format.percent(still / 100))
            row("Right answers", Format.points(right, still), before, after)
        }
        boughtDoubt = slow.whyInvalid ?? fast.whyInvalid
    }

    // the check

    /// Golden pictures and latency; `stopCheck` ends it early.
    public func startCheck(_ asked: Timing) {
        guard check == nil, let loaded, state == .ready else { return }
        stopCamera()
        (checked, checkProblem, checking) = (nil, nil, 0)
        check = Task { [weak self, worker] in
            do {
                let found = try await worker.check(loaded, asked) { seconds in
                    Task { @MainActor in
                        if let self, self.checking != nil { self.checking = min(1, seconds / max(asked.seconds, 1)) }
                    }
                }
                self?.checked = found
            } catch is CancellationError {
                self?.checkProblem = "Stopped."
            } catch {
                self?.checkProblem = "It could not be done: \(Classifier.words(error))"
            }
            self?.checking = nil
            self?.check = nil
        }
    }

    public func stopCheck() { check?.cancel() }

    /// Until the check that runs has ended.
    func waitForCheck() async { await check?.value }

    // words

    private static func distrust(_ golden: GoldenCheck) -> String {
        guard let error = golden.error, let limit = golden.limit else {
            return "The model gives something else than numbers. Do not trust what it says."
        }
        return "The model computes something else here than where it was made (\(Format.digits(error)) off, "
            + "\(Format.digits(limit)) allowed). Do not trust what it says."
    }

    private static func words(_ error: any Error) -> String {
        (error as? Fault)?.message ?? (error as? Refused)?.message ?? error.localizedDescription
    }
}
