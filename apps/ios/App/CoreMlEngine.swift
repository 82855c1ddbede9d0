import ClassifierKit
import CoreML
import CoreVideo
import Foundation

/// Packages by Core ML, which takes the Neural Engine, the GPU or the processor for each operation.
struct CoreMlEngine: Engine {
    let format = "coreml"
    let runtime = "Core ML"

    var version: String {
        let system = ProcessInfo.processInfo.operatingSystemVersion
        return "iOS \(system.majorVersion).\(system.minorVersion)"
    }

    func load(_ file: URL, _ units: ComputeUnits) async throws -> any Program {
        do {
            let compiled = try await MLModel.compileModel(at: file)
            let configuration = MLModelConfiguration()
            configuration.computeUnits = units.coreMl
            let model = try await MLModel.load(contentsOf: compiled, configuration: configuration)
            return try CoreMlProgram(model, compiled, await placement(compiled, configuration))
        } catch let refused as Refused {
            throw refused
        } catch {
            throw Refused("\(runtime) does not take \(file.lastPathComponent): \(error.localizedDescription)")
        }
    }

    /// What Core ML plans for each operation; nil before iOS 17.4, or if it does not tell.
    private func placement(_ compiled: URL, _ configuration: MLModelConfiguration) async -> Placement? {
        guard #available(iOS 17.4, *),
            let plan = try? await MLComputePlan.load(contentsOf: compiled, configuration: configuration),
            case .program(let program) = plan.modelStructure, let main = program.functions["main"]
        else { return nil }
        var (neuralEngine, gpu, cpu) = (0, 0, 0)
        for operation in main.block.operations {
            switch plan.deviceUsage(for: operation)?.preferred {
            case .neuralEngine: neuralEngine += 1
            case .gpu: gpu += 1
            case .cpu: cpu += 1
            default: break  // a constant
            }
        }
        return Placement(neuralEngine: neuralEngine, gpu: gpu, cpu: cpu)
    }
}

extension ComputeUnits {
    fileprivate var coreMl: MLComputeUnits {
        switch self {
        case .all: return .all
        case .cpuAndNeuralEngine: return .cpuAndNeuralEngine
        case .cpuAndGpu: return .cpuAndGPU
        case .cpuOnly: return .cpuOnly
        }
    }
}

/// A loaded model. Core ML lets several threads ask one model, and nothing else here changes.
private final class CoreMlProgram: Program, @unchecked Sendable {
    private static let (input, output) = ("image", "logits")

    let placement: Placement?
    private let model: MLModel
    private let compiled: URL
    private let width: Int
    private let height: Int

    /// Throws Refused for a model of another interface than targets/coreml.py gives it.
    init(_ model: MLModel, _ compiled: URL, _ placement: Placement?) throws {
        let description = model.modelDescription
        guard let image = description.inputDescriptionsByName[CoreMlProgram.input]?.imageConstraint,
            description.outputDescriptionsByName[CoreMlProgram.output] != nil
        else { throw Refused("it does not map an image to logits") }
        (self.model, self.compiled, self.placement) = (model, compiled, placement)
        (width, height) = (image.pixelsWide, image.pixelsHigh)
    }

    deinit { try? FileManager.default.removeItem(at: compiled) }

    func prepare(_ picture: [UInt8]) throws -> () throws -> [Float] {
        let value = MLFeatureValue(pixelBuffer: try buffer(picture))
        let features = try MLDictionaryFeatureProvider(dictionary: [CoreMlProgram.input: value])
        return { [model] in
            do {
                let found = try model.prediction(from: features)
                guard let logits = found.featureValue(for: CoreMlProgram.output)?.multiArrayValue else {
                    throw Refused("it gives no logits")
                }
                return (0..<logits.count).map { logits[$0].floatValue }
            } catch let refused as Refused {
                throw refused
            } catch {
                throw Refused("Core ML does not run it: \(error.localizedDescription)")
            }
        }
    }

    private func buffer(_ picture: [UInt8]) throws -> CVPixelBuffer {
        if picture.count != width * height * 3 { throw Refused("it takes pictures of another size") }
        var made: CVPixelBuffer?
        let attributes = [kCVPixelBufferIOSurfacePropertiesKey as String: [String: String]()] as CFDictionary
        CVPixelBufferCreate(nil, width, height, kCVPixelFormatType_32BGRA, attributes, &made)
        guard let buffer = made else { throw Refused("there is no memory for a picture") }
        CVPixelBufferLockBaseAddress(buffer, [])
        defer { CVPixelBufferUnlockBaseAddress(buffer, []) }
        guard let base = CVPixelBufferGetBaseAddress(buffer) else { throw Refused("there is no memory for a picture") }
        let line = CVPixelBufferGetBytesPerRow(buffer)
        for y in 0..<height {
            for x in 0..<width {
                let from = (y * width + x) * 3
                for (place, colour) in [(0, 2), (1, 1), (2, 0)] {
                    base.storeBytes(of: picture[from + colour], toByteOffset: y * line + 4 * x + place, as: UInt8.self)
                }
                base.storeBytes(of: 255, toByteOffset: y * line + 4 * x + 3, as: UInt8.self)
            }
        }
        return buffer
    }
}
