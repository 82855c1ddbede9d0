import Foundation

@testable import ClassifierKit

let side = 2

/// Gives the mean of a picture's colours as logits, each artifact with a shift of its own.
struct FakeEngine: Engine {
    let format = "coreml"
    let runtime = "Fake"
    let version = "1"
    /// artifact -> why it does not load
    var refuses: [String: String] = [:]
    var shift: [String: Float] = [:]
    var takesMs = 0.0

    func load(_ file: URL, _ units: ComputeUnits) async throws -> any Program {
        let name = file.lastPathComponent
        if let why = refuses[name] { throw Refused(why) }
        return FakeProgram(shift: shift[name] ?? 0, takesMs: takesMs, isCpu: units == .cpuOnly)
    }
}

struct FakeProgram: Program {
    let shift: Float
    let takesMs: Double
    let isCpu: Bool

    var placement: Placement? { Placement(neuralEngine: isCpu ? 0 : 7, gpu: 0, cpu: isCpu ? 8 : 1) }

    func prepare(_ picture: [UInt8]) throws -> () throws -> [Float] {
        if picture.count != side * side * 3 { throw Refused("it takes pictures of another size") }
        return {
            if takesMs > 0 { Thread.sleep(forTimeInterval: takesMs / 1000) }
            return (0..<3).map { colour in
                stride(from: colour, to: picture.count, by: 3).reduce(shift) { $0 + Float(picture[$1]) / 100 }
            }
        }
    }
}

final class FakeDevice: Device, @unchecked Sendable {
    var state = Conditions(battery: "80 %", lowPower: false, thermal: .nominal)
    var why: String?
    var emulated: String?

    func describe() async -> Description {
        Description(device: "iPhone X", os: "iOS 18", cpu: nil, cores: 2, arch: "arm64", emulated: emulated)
    }

    func conditions() async -> Conditions { state }

    func disturbed() async -> String? { why }

    func memoryMb() -> (now: Double, peak: Double)? { (10, 12.5) }
}

@MainActor final class FakeCamera: Camera {
    var problem: CameraProblem?
    var isOn = false
    private var frames: AsyncStream<Picture>.Continuation?

    func start() async throws -> AsyncStream<Picture> {
        if let problem { throw problem }
        isOn = true
        let (stream, continuation) = AsyncStream.makeStream(of: Picture.self, bufferingPolicy: .bufferingNewest(1))
        frames = continuation
        return stream
    }

    func stop() {
        isOn = false
        frames?.finish()
    }

    func send(_ frame: Picture) { frames?.yield(frame) }
}

/// All of one colour.
func plain(_ red: UInt8, _ green: UInt8, _ blue: UInt8) -> Picture {
    let bytes = (0..<16).flatMap { _ -> [UInt8] in [red, green, blue, 255] }
    return Picture(bytes: bytes, rowBytes: 16, across: 4, down: 4, order: .rgb)
}

/// A model's folder with a pruned and a dense file and a golden picture, all red.
final class FakeModels: Models, @unchecked Sendable {
    let folder: URL
    var text = ""

    init(golden: [Double] = [10.2, 0, 0], dense: Bool = true) throws {
        folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        func file(_ name: String, _ role: String, _ size: Int, _ top1: Double) throws -> String {
            let path = folder.appendingPathComponent(name)
            try Data(name.utf8).write(to: path)
            return """
                {"file": "\(name)", "format": "coreml", "precision": "fp16", "role": "\(role)", "size_bytes": \(size), \
                "sha256": "\(sha256(of: path))", "layout": "image", "dtype": "uint8", "measured": {"top1": \(top1)}}
                """
        }
        let files =
            [try file("pruned", "pruned", 1_000_000, 89)] + (dense ? [try file("dense", "dense", 4_000_000, 90)] : [])
        text = """
            {"manifest_version": 2, "model": "deit", "dataset": "digits", "target": "ios",
            "labels": ["red_one", "green", "blue"], "input": {"height": 2, "width": 2, "color": "RGB",
            "range": [0, 255], "resize": {"shorter_side": 2, "longer_side": "rounded", "interpolation": "bilinear",
            "centre_crop": 2}}, "files": [\(files.joined(separator: ", "))], "golden": [{"file": "golden/0.png",
            "sha256": "\(String(repeating: "b", count: 64))", "model": [1, 0, 0], "artifacts": {"pruned": \(golden)}}],
            "golden_share": {"pruned": 0.05}, "params": 250000, "params_dense": 1000000}
            """
    }

    deinit { try? FileManager.default.removeItem(at: folder) }

    func manifest() throws -> Manifest { try Manifest([UInt8](text.utf8)) }

    func file(_ name: String) -> URL { folder.appendingPathComponent(name) }

    func golden(_ name: String) throws -> [UInt8] { (0..<4).flatMap { _ -> [UInt8] in [255, 0, 0] } }
}
