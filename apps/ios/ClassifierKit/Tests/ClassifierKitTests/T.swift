import XCTest
@testable import ClassifierKit
final class T: XCTestCase { @MainActor func testA() { XCTAssertEqual(X().a, 1) } }
