import Foundation
import Observation
@Observable @MainActor public final class X { public var a = 1; public init() {} }
