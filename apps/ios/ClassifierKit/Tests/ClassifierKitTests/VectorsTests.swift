import Foundation
import XCTest

@testable import ClassifierKit

/// tests/vectors: what the pipeline, the web app, the Android app and this one must agree on.
final class VectorsTests: XCTestCase {
    /// the repository's, unless DAP_VECTORS names another
    private static let folder =
        ProcessInfo.processInfo.environment["DAP_VECTORS"].map { URL(fileURLWithPath: $0) }
        ?? URL(fileURLWithPath: #filePath).appendingPathComponent("../../../../../../tests/vectors").standardized

    private func cases(_ name: String) throws -> [Item] {
        let content = try Data(contentsOf: VectorsTests.folder.appendingPathComponent(name))
        let found = try Item(Json.parse([UInt8](content)), name).list { $0 }
        XCTAssertFalse(found.isEmpty)
        return found
    }

    private func floats(_ item: Item) throws -> [Float] {
        try item.list { try $0.orNil { Float(try $0.number()) } ?? .nan }
    }

    private func close(_ found: Double, _ expected: Item, _ what: String) throws {
        let wanted = try expected.number()
        XCTAssertLessThanOrEqual(abs(found - wanted), 1e-9 * max(1, abs(wanted)), what)
    }

    func testPicturesAreResizedToTheBit() throws {
        for one in try cases("resize.json") {
            let (width, height) = (try one.member("width").count(), try one.member("height").count())
            let rule = try one.member("rule").object()
            let size = try one.member("rule").member("centre_crop").count()
            let input = InputSpec(height: size, width: size, color: "RGB", range: (0, 255), resize: rule)
            let found = resize(made(width, height), try ResizeRule(input))
            let what = "\(width) x \(height) to \(rule)"
            XCTAssertEqual(found.prefix(12).map(Int.init), try one.member("first").list { try $0.whole() }, what)
            var digest = Sha256()
            digest.update(found)
            XCTAssertEqual(digest.hex(), try one.member("sha256").text(), what)
        }
    }

    func testStatisticsAreThePipelines() throws {
        for one in try cases("statistics.json") {
            let samples = try one.member("samples_ns").list { try $0.whole() }
            let found = summarise(samples, try one.member("seconds").number(), try one.member("min_samples").count())
            try close(found.p5Ms, one.member("p5_ms"), "p5")
            try close(found.p50Ms, one.member("p50_ms"), "p50")
            try close(found.p90Ms, one.member("p90_ms"), "p90")
            try close(found.meanMs, one.member("mean_ms"), "mean")
            try close(found.p90BoundMs, one.member("p90_bound_ms"), "p90_bound")
            XCTAssertEqual(found.whyInvalid, try one.member("why_invalid").orNil { try $0.text() })
        }
    }

    func testEqualAnswersComeInOrder() throws {
        for one in try cases("answers.json") {
            let logits = try floats(one.member("logits"))
            XCTAssertEqual(argmax(logits), try one.member("argmax").whole())
            XCTAssertEqual(best(logits, 5), try one.member("best").list { try $0.whole() })
            let shares = try one.member("shares").orNil { try $0.numbers() } ?? []
            for (found, share) in zip(softmax(logits), shares) { XCTAssertEqual(Double(found), share, accuracy: 1e-6) }
        }
    }

    func testDifferencesAreThePipelines() throws {
        for one in try cases("differences.json") {
            let found = try one.member("found").list(floats)
            let expected = try one.member("expected").list { try $0.numbers() }
            XCTAssertEqual(largestDifference(found, expected), try one.member("error").orNil { try $0.number() })
            let labels = try one.member("labels").list { try $0.whole() }
            XCTAssertEqual(top1(found, labels), try one.member("top1").number())
        }
    }

    func testManifestsAreTakenOrRefused() throws {
        for one in try cases("manifests.json") {
            let name = try one.member("name").text()
            let content = [UInt8](try one.member("text").text().utf8)
            if try one.member("good").truth() {
                XCTAssertFalse(try Manifest(content).labels.isEmpty, name)
            } else {
                XCTAssertThrowsError(try Manifest(content), name) { error in
                    XCTAssertTrue((error as? Fault)?.message.hasPrefix(manifestName) ?? false, "\(error)")
                }
            }
        }
    }

    func testResultsAreWrittenAsTheContractHasThem() throws {
        for one in try cases("results.json") {
            let job = try Job([UInt8](one.member("job").value!.written.utf8))
            let written = try result(job, one).json.written
            XCTAssertEqual(unified(try Json.parse([UInt8](written.utf8))), unified(try expected(one)))
        }
    }

    /// What the vectors have from an Android phone: Apple tells no temperature, and has other words for heat.
    private func expected(_ one: Item) throws -> Json {
        let android = try one.member("result").value!.written
        let apples = android.replacingOccurrences(of: "\"temperature_c\": 31.5", with: "\"temperature_c\": null")
        return try Json.parse([UInt8](apples.replacingOccurrences(of: "status severe", with: "status serious").utf8))
    }

    /// Numbers as doubles, so that 1 and 1.0 are the same.
    private func unified(_ value: Json) -> Json {
        switch value {
        case .object(let members): return .object(members.mapValues(unified))
        case .list(let items): return .list(items.map(unified))
        case .whole(let number): return .number(Double(number))
        default: return value
        }
    }

    private func result(_ job: Job, _ one: Item) throws -> DeviceResult {
        let told = try one.member("result")
        let device = Description(
            device: "Pixel", os: "Android 15", cpu: nil, cores: 8, arch: "arm64-v8a", emulated: nil)
        var found = DeviceResult(
            job: job.id, file: job.files[0], sha256: String(repeating: "a", count: 64), device: device, threads: 2)
        if let refused = try told.member("refused").orNil({ try $0.text() }) {
            found.refused = refused
            return found
        }
        let isHot = try one.member("name").text() == "too hot"
        let state = Conditions(battery: "80 % idle", lowPower: false, thermal: isHot ? .serious : .fair)
        let samples = try one.member("samples_ns").list { try $0.whole() }
        let time = summarise(samples, 0.5, job.asked!.minSamples)
        (found.before, found.after) = (state, state)
        (found.runtime, found.runtimeVersion) = ("TFLite", "2.14.0")
        found.golden = try told.member("golden").list(floats)
        found.goldenError = largestDifference(found.golden, job.golden)
        found.logits = try told.member("logits").list(floats)
        found.top1 = top1(found.logits, job.labels)
        found.latency = [job.files[0]: Conditions.heldBack(state, state).map(time.invalid) ?? time]
        found.peakMb = 12.5
        found.unmeasured = [job.files[1]: "it does not load"]
        return found
    }
}

/// A picture as tests/vectors/make.py makes it.
func made(_ width: Int, _ height: Int) -> Picture {
    var state = 1 + width + 1000 * height
    var bytes: [UInt8] = []
    for i in 0..<(width * height * 3) {
        state = (state * 1_103_515_245 + 12345) & 0x7fff_ffff
        bytes.append(UInt8(((state >> 16) % 128 + i / 3 % width * 127 / width) % 256))
        if i % 3 == 2 { bytes.append(255) }
    }
    return Picture(bytes: bytes, rowBytes: 4 * width, across: width, down: height, order: .rgb)
}
