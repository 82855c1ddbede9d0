import Foundation
import XCTest

@testable import ClassifierKit

final class CoreTests: XCTestCase {
    /// A picture of 4 x 2 pixels, each of another brightness, with bytes behind each row.
    private func rows(_ turned: Int) -> [[Int]] {
        let bytes = (0..<2).flatMap { y in
            (0..<5).flatMap { x in [UInt8](repeating: UInt8(10 * (4 * y + x)), count: 4) }
        }
        let picture = Picture(bytes: bytes, rowBytes: 20, across: 4, down: 2, order: .rgb, turned: turned)
        var pixels = [UInt32](repeating: 0, count: 8)
        picture.rows(0, picture.height, &pixels)
        return (0..<picture.height).map { y in
            (0..<picture.width).map { Int(pixels[y * picture.width + $0] & 255) / 10 }
        }
    }

    func testAPictureIsTurnedUprightAsExifSays() {
        XCTAssertEqual(rows(1), [[0, 1, 2, 3], [4, 5, 6, 7]])
        XCTAssertEqual(rows(2), [[3, 2, 1, 0], [7, 6, 5, 4]])
        XCTAssertEqual(rows(3), [[7, 6, 5, 4], [3, 2, 1, 0]])
        XCTAssertEqual(rows(4), [[4, 5, 6, 7], [0, 1, 2, 3]])
        XCTAssertEqual(rows(5), [[0, 4], [1, 5], [2, 6], [3, 7]])
        XCTAssertEqual(rows(6), [[4, 0], [5, 1], [6, 2], [7, 3]])
        XCTAssertEqual(rows(7), [[7, 3], [6, 2], [5, 1], [4, 0]])
        XCTAssertEqual(rows(8), [[3, 7], [2, 6], [1, 5], [0, 4]])
        XCTAssertEqual(rows(99), rows(1))
    }

    func testACamerasBytesAreBlueFirst() {
        var pixels: [UInt32] = [0]
        Picture(bytes: [1, 2, 3, 255], rowBytes: 4, across: 1, down: 1, order: .bgr).rows(0, 1, &pixels)
        XCTAssertEqual(pixels, [0x030201])
    }

    func testChecksumsAreThoseOfThePipeline() throws {
        func digest(_ count: Int) -> String {
            var found = Sha256()
            for _ in 0..<count { found.update("a".utf8) }
            return found.hex()
        }
        XCTAssertEqual(digest(0), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
        XCTAssertEqual(digest(64), "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb")
        XCTAssertEqual(digest(119), "31eba51c313a5c08226adf18d4a359cfdfd8d2e816b13f4af952f7ea6584dcfb")
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        defer { try? FileManager.default.removeItem(at: folder) }
        for (name, text) in [("a/b", "1"), ("a.c", "2"), ("z", "")] {
            let path = folder.appendingPathComponent(name)
            try FileManager.default.createDirectory(
                at: path.deletingLastPathComponent(), withIntermediateDirectories: true)
            try Data(text.utf8).write(to: path)
        }
        XCTAssertEqual(sha256(of: folder), "423d9bd627b963f4a384315a2e5b947a263f66049964f81daa28571bb33b5494")
        XCTAssertEqual(sha256(of: folder.appendingPathComponent("none")), "")
    }

    func testTextsSurviveJson() throws {
        for text in ["plain", "\"\\/", "\u{1}\n\u{7f}", "Ж𝄞é", ""] {
            XCTAssertEqual(try Json.parse([UInt8](Json.text(text).written.utf8)), .text(text))
        }
        XCTAssertEqual(try Json.parse([UInt8]("\"\\ud834\\udd1e\"".utf8)), .text("𝄞"))
        for bad in ["01", "-", "1.", "1e", "+1", ".5", "\"\\x\"", "\"\\u12g4\"", "tru", "[1 2]", "{1: 2}", "\"\u{80}"] {
            XCTAssertThrowsError(try Json.parse([UInt8](bad.utf8)), bad)
        }
        XCTAssertThrowsError(try Json.parse([0x22, 0xff, 0x22]))
    }

    func testMeasuringStopsWhenTheDeviceIsTooSlowOrSomebodyWantsIt() throws {
        struct Stopped: Error {}
        let brief = Timing(name: "brief", seconds: 0.05, minSamples: 1000, warmup: 1, cooldownS: 0)
        let found = try ClassifierKit.measure([("a", { Thread.sleep(forTimeInterval: 0.005) }), ("b", {})], brief)
        XCTAssertEqual(found["a"]!.samplesMs.count, found["b"]!.samplesMs.count)
        XCTAssertTrue(found["a"]!.whyInvalid!.hasSuffix("1000 needed, 64 at least"))
        XCTAssertThrowsError(try ClassifierKit.measure([("a", {})], brief) { if $0 > 0 { throw Stopped() } })
    }

    func testHeatAndLowPowerModeSpoilATime() {
        func state(_ thermal: ThermalState?, _ low: Bool? = false) -> Conditions {
            Conditions(battery: nil, lowPower: low, thermal: thermal)
        }
        XCTAssertNil(Conditions.heldBack(state(.nominal), state(.fair)))
        XCTAssertNil(Conditions.heldBack(state(nil, nil), state(nil, nil)))
        XCTAssertTrue(Conditions.heldBack(state(.nominal), state(.critical))!.contains("thermal status critical"))
        XCTAssertEqual(Conditions.heldBack(state(nil, true), state(nil)), "its battery saver was on")
    }

    private func jobFolder(_ changes: [String: Json] = [:]) throws -> URL {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        let files = ["good", "bad", goldenName, imagesName]
        for name in files { try Data(count: 12).write(to: folder.appendingPathComponent(name)) }
        var job: [String: Json] = [
            "version": .whole(1), "id": .text("0"), "format": .text("coreml"), "files": .list([.text("good")]),
            "sha256": .texts(
                Dictionary(uniqueKeysWithValues: files.map { ($0, sha256(of: folder.appendingPathComponent($0))) })),
            "threads": .whole(1), "height": .whole(2), "width": .whole(2), "classes": .whole(3),
            "golden": .list([.list([.whole(0), .whole(0), .whole(0)])]), "labels": .list([.whole(0)]),
            "memory": .truth(true),
            "protocol": .object([
                "name": .text("brief"), "seconds": .number(0.01), "min_samples": .whole(1), "warmup": .whole(0),
                "cooldown_s": .number(0),
            ]),
        ]
        job.merge(changes) { $1 }
        try write(.object(job), folder.appendingPathComponent(jobName))
        return folder
    }

    func testAJobThatIsNotWholeIsRefused() throws {
        let folder = try jobFolder()
        XCTAssertEqual(try Job(in: folder).pictures(folder, goldenName), [[UInt8](repeating: 0, count: 12)])
        try Data(count: 11).write(to: folder.appendingPathComponent(goldenName))
        XCTAssertThrowsError(try Job(in: folder)) { XCTAssertTrue("\($0)".contains("golden.u8 did not arrive whole")) }
        try FileManager.default.removeItem(at: folder.appendingPathComponent(jobName))
        XCTAssertThrowsError(try Job(in: folder)) { XCTAssertTrue("\($0)".contains("there is none")) }
        let wrong: [(String, Json)] = [
            ("version", .whole(2)), ("threads", .whole(0)), ("more", .whole(1)), ("files", .list([])),
            ("labels", .list([.whole(3)])), ("golden", .list([.list([.whole(0)])])), ("files", .list([.text("../x")])),
            ("protocol", .object([:])), ("files", .list([.text("unknown")])),
        ]
        for (key, value) in wrong {
            XCTAssertThrowsError(try Job(in: try jobFolder([key: value])), key) {
                XCTAssertTrue("\($0)".contains("\(jobName) is missing or not whole"), "\($0)")
            }
        }
    }

    func testAnArtifactThatDoesNotRunIsAResult() async throws {
        let (engine, host) = (FakeEngine(refuses: ["bad": "it is bad"], takesMs: 1), FakeDevice())
        func done(_ files: [String]) async throws -> DeviceResult {
            let folder = try jobFolder(["files": .list(files.map(Json.text))])
            return try await work(try Job(in: folder), folder, engine, host, .all) { _, _, _ in }
        }
        let refused = try await done(["bad"])
        XCTAssertEqual(refused.refused, "it is bad")
        XCTAssertTrue(refused.golden.isEmpty && refused.latency.isEmpty)
        let measured = try await done(["good", "bad"])
        XCTAssertEqual(measured.unmeasured, ["bad": "it is bad"])
        XCTAssertEqual(Array(measured.latency.keys), ["good"])
        XCTAssertEqual(measured.goldenError, 0)
        XCTAssertEqual(measured.top1, 1)
        XCTAssertEqual(measured.peakMb, 2.5)
        XCTAssertEqual(measured.runtimeVersion, "1; operations: 7 on the Neural Engine, 1 on the CPU")
        XCTAssertNil(measured.latency["good"]!.whyInvalid)
        host.why = "the app was not in front all the time"
        let away = try await done(["good"])
        XCTAssertEqual(away.latency["good"]!.whyInvalid, host.why)
        host.emulated = "the iOS simulator"
        let simulated = try await done(["good"])
        XCTAssertEqual(simulated.latency["good"]!.whyInvalid, "the iOS simulator emulates this device")
        XCTAssertNil(simulated.peakMb)
    }

    func testAJobOfAnotherFormatIsRefused() async throws {
        let folder = try jobFolder(["format": .text("executorch-coreml")])
        let job = try Job(in: folder)
        do {
            _ = try await work(job, folder, FakeEngine(), FakeDevice(), .all) { _, _, _ in }
            XCTFail("it was done")
        } catch {
            XCTAssertEqual(error as? Fault, Fault("this app runs coreml, not executorch-coreml"))
        }
    }

    func testNumbersAreShownAsTheWebAppShowsThem() {
        XCTAssertEqual(Format.milliseconds(1.234), "1.23 ms")
        XCTAssertEqual(Format.milliseconds(12.34), "12.3 ms")
        XCTAssertEqual(Format.milliseconds(123.4), "123 ms")
        XCTAssertEqual(Format.bytes(965_000), "965 kB")
        XCTAssertEqual(Format.bytes(1_234_000), "1.23 MB")
        XCTAssertEqual(Format.bytes(12_340_000), "12.3 MB")
        XCTAssertEqual(Format.count(999), "999")
        XCTAssertEqual(Format.count(1_234_000), "1.23 M")
        XCTAssertEqual(Format.change(4, 1), "\u{2212}75 %")
        XCTAssertEqual(Format.change(4, 4), "the same")
        XCTAssertEqual(Format.points(90, 91.5), "+1.5 points")
        XCTAssertEqual(Format.label("oxeye_daisy"), "oxeye daisy")
    }
}
