import Foundation
import XCTest

@testable import ClassifierKit

/// What the screens show, with an engine, a camera and a phone that stand in.
final class ClassifierTests: XCTestCase {
    @MainActor private func ready(
        _ models: FakeModels, engine: FakeEngine = FakeEngine(), camera: FakeCamera = FakeCamera(),
        host: FakeDevice = FakeDevice()
    ) async -> Classifier {
        let found = Classifier(models: models, engine: engine, camera: camera, host: host)
        await found.load()
        return found
    }

    @MainActor func testTheGoldenPictureIsAnsweredFirst() async throws {
        let shown = await ready(try FakeModels())
        XCTAssertEqual(shown.state, .ready)
        XCTAssertNil(shown.notice)
        XCTAssertEqual(shown.golden?.verdict, .good)
        XCTAssertEqual(shown.answers.map(\.label), ["red one", "green", "blue"])
        XCTAssertGreaterThan(shown.answers[0].share, 0.99)
        XCTAssertEqual(shown.bought.map(\.id), ["Time, measured here", "Size", "Parameters", "Right answers"])
        XCTAssertEqual(shown.bought[1].gain, "\u{2212}75 %")
        XCTAssertEqual(shown.bought[3].gain, "\u{2212}1.0 points")
        XCTAssertEqual(shown.placement, Placement(neuralEngine: 7, gpu: 0, cpu: 1))
        XCTAssertEqual(shown.conditions?.thermal, .nominal)
    }

    @MainActor func testAPhotoIsAnsweredByBothModels() async throws {
        let shown = await ready(try FakeModels(), engine: FakeEngine(shift: ["dense": 3]))
        await shown.show(plain(0, 255, 0))
        XCTAssertEqual(shown.answers[0].label, "green")
        XCTAssertNotNil(shown.p90Ms)
        await shown.choose(.dense)
        XCTAssertEqual(shown.role, .dense)
        XCTAssertEqual(shown.answers[0].label, "green")
        await shown.show(nil)
        XCTAssertEqual(shown.notice, "This file is no picture that this phone can read.")
    }

    @MainActor func testOtherComputeUnitsLoadTheModelAnew() async throws {
        let shown = await ready(try FakeModels())
        await shown.show(plain(0, 0, 255))
        await shown.load(.cpuOnly)
        XCTAssertEqual(shown.units, .cpuOnly)
        XCTAssertEqual(shown.placement?.words, "operations: 8 on the CPU")
        XCTAssertEqual(shown.answers[0].label, "blue")
    }

    @MainActor func testAModelThatComputesSomethingElseIsNotTrusted() async throws {
        let shown = await ready(try FakeModels(golden: [2, 0, 0]))
        XCTAssertEqual(shown.golden?.verdict, .bad)
        XCTAssertTrue(shown.notice?.hasSuffix("Do not trust what it says.") ?? false)
        let numbers = await ready(try FakeModels(), engine: FakeEngine(shift: ["pruned": .nan]))
        XCTAssertEqual(
            numbers.notice, "The model gives something else than numbers. Do not trust what it says.")
    }

    @MainActor func testWhatCannotBeLoadedIsSaid() async throws {
        let damaged = try FakeModels()
        try Data("x".utf8).write(to: damaged.file("pruned"))
        let first = await ready(damaged)
        XCTAssertEqual(first.state, .failed("The model cannot be used: pruned is missing or damaged"))
        let refused = await ready(try FakeModels(), engine: FakeEngine(refuses: ["pruned": "it is bad"]))
        XCTAssertEqual(refused.state, .failed("The model cannot be used: it is bad"))
        let unread = try FakeModels()
        unread.text = "{"
        let third = await ready(unread)
        XCTAssertTrue("\(third.state)".contains("manifest.json: is damaged"), "\(third.state)")
    }

    @MainActor func testWithoutADenseModelThereIsNothingToCompare() async throws {
        let alone = await ready(try FakeModels(dense: false))
        XCTAssertEqual(alone.roles, [.pruned])
        XCTAssertTrue(alone.bought.isEmpty)
        await alone.choose(.dense)
        XCTAssertEqual(alone.role, .pruned)
        let refused = await ready(try FakeModels(), engine: FakeEngine(refuses: ["dense": "it is bad"]))
        XCTAssertEqual(refused.state, .ready)
        XCTAssertEqual(refused.roles, [.pruned])
    }

    @MainActor func testTheCamerasFramesAreAnswered() async throws {
        let camera = FakeCamera()
        let shown = await ready(try FakeModels(), camera: camera)
        await shown.startCamera()
        XCTAssertTrue(shown.isLive && camera.isOn)
        for colour: (UInt8, UInt8, UInt8, String) in [(0, 255, 0, "green"), (0, 0, 255, "blue")] {
            camera.send(plain(colour.0, colour.1, colour.2))
            for _ in 0..<500 where shown.answers[0].label != colour.3 {
                try await Task.sleep(nanoseconds: 2_000_000)
            }
            XCTAssertEqual(shown.answers[0].label, colour.3)
        }
        XCTAssertNotNil(shown.picturesPerSecond)
        shown.stopCamera()
        XCTAssertFalse(shown.isLive || camera.isOn)
    }

    @MainActor func testACameraThatMayNotBeUsedLeadsToTheSettings() async throws {
        let camera = FakeCamera()
        let shown = await ready(try FakeModels(), camera: camera)
        for (problem, settings) in [(CameraProblem.denied, true), (.none, false), (.failed("x"), false)] {
            camera.problem = problem
            await shown.startCamera()
            XCTAssertEqual(shown.notice, problem.words)
            XCTAssertEqual(shown.needsSettings, settings)
            XCTAssertFalse(shown.isLive)
        }
    }

    @MainActor func testTheCheckTellsWhatItFound() async throws {
        let host = FakeDevice()
        let shown = await ready(try FakeModels(), host: host)
        let brief = Timing(name: "brief", seconds: 0.02, minSamples: 3, warmup: 0, cooldownS: 0)
        shown.startCheck(brief)
        await shown.waitForCheck()
        XCTAssertEqual(shown.checked?.golden.verdict, .good)
        XCTAssertEqual(shown.checked?.times.count, 2)
        XCTAssertNil(shown.checked?.heldBack)
        host.state = Conditions(battery: nil, lowPower: true, thermal: .nominal)
        shown.startCheck(brief)
        await shown.waitForCheck()
        XCTAssertEqual(shown.checked?.times[.pruned]?.whyInvalid, "its battery saver was on")
        shown.startCheck(Timing(name: "long", seconds: 60, minSamples: 1, warmup: 0, cooldownS: 0))
        shown.stopCheck()
        await shown.waitForCheck()
        XCTAssertEqual(shown.checkProblem, "Stopped.")
        XCTAssertNil(shown.checking)
    }
}
