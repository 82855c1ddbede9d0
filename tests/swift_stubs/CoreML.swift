@_exported import CoreVideo
@_exported import Foundation

public enum MLComputeUnits: Int, Sendable { case cpuOnly, cpuAndGPU, all, cpuAndNeuralEngine }

public class MLModelConfiguration: NSObject {
    public var computeUnits = MLComputeUnits.all
}

public class MLMultiArray: NSObject {
    public var count: Int { fatalError() }
    public subscript(place: Int) -> NSNumber { fatalError() }
}

public class MLFeatureValue: NSObject {
    public init(pixelBuffer: CVPixelBuffer) { fatalError() }
    public var multiArrayValue: MLMultiArray? { fatalError() }
}

public protocol MLFeatureProvider {
    func featureValue(for name: String) -> MLFeatureValue?
}

public class MLDictionaryFeatureProvider: NSObject, MLFeatureProvider {
    public init(dictionary: [String: Any]) throws { fatalError() }
    public func featureValue(for name: String) -> MLFeatureValue? { fatalError() }
}

public class MLImageConstraint: NSObject {
    public var pixelsWide: Int { fatalError() }
    public var pixelsHigh: Int { fatalError() }
}

public class MLFeatureDescription: NSObject {
    public var imageConstraint: MLImageConstraint? { fatalError() }
}

public class MLModelDescription: NSObject {
    public var inputDescriptionsByName: [String: MLFeatureDescription] { fatalError() }
    public var outputDescriptionsByName: [String: MLFeatureDescription] { fatalError() }
}

public class MLModel: NSObject {
    public class func compileModel(at url: URL) async throws -> URL { fatalError() }
    public class func load(contentsOf url: URL, configuration: MLModelConfiguration) async throws -> MLModel {
        fatalError()
    }
    public var modelDescription: MLModelDescription { fatalError() }
    public func prediction(from input: any MLFeatureProvider) throws -> any MLFeatureProvider { fatalError() }
}

public enum MLComputeDevice { case cpu, gpu, neuralEngine }

public class MLModelStructure {
    public enum Kind { case program(Program), other }
    public struct Operation {}
    public struct Block { public var operations: [Operation] { fatalError() } }
    public struct Function { public var block: Block { fatalError() } }
    public struct Program { public var functions: [String: Function] { fatalError() } }
}

public class MLComputePlan {
    public struct DeviceUsage { public var preferred: MLComputeDevice { fatalError() } }
    public class func load(contentsOf url: URL, configuration: MLModelConfiguration) async throws -> MLComputePlan {
        fatalError()
    }
    public var modelStructure: MLModelStructure.Kind { fatalError() }
    public func deviceUsage(for operation: MLModelStructure.Operation) -> DeviceUsage? { fatalError() }
}
