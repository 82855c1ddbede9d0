@_exported import CoreVideo
@_exported import Dispatch
@_exported import Foundation

public struct AVMediaType: Sendable { public static let video = AVMediaType() }

public class AVCaptureDevice: NSObject {
    public enum Position: Int, Sendable { case unspecified, back, front }
    public struct DeviceType: Sendable { public static let builtInWideAngleCamera = DeviceType() }
    public class func requestAccess(for media: AVMediaType) async -> Bool { fatalError() }
    public class func `default`(_ kind: DeviceType, for media: AVMediaType?, position: Position) -> AVCaptureDevice? {
        fatalError()
    }
}

public class AVCaptureInput: NSObject {}
public class AVCaptureDeviceInput: AVCaptureInput {
    public init(device: AVCaptureDevice) throws { fatalError() }
}

public class AVCaptureConnection: NSObject {
    public var videoRotationAngle: CGFloat = 0
    public func isVideoRotationAngleSupported(_ angle: CGFloat) -> Bool { fatalError() }
}

public class AVCaptureOutput: NSObject {
    public func connection(with media: AVMediaType) -> AVCaptureConnection? { fatalError() }
}

public final class CMSampleBuffer {}
public func CMSampleBufferGetImageBuffer(_ sample: CMSampleBuffer) -> CVPixelBuffer? { fatalError() }

public protocol AVCaptureVideoDataOutputSampleBufferDelegate: AnyObject {
    func captureOutput(
        _ output: AVCaptureOutput, didOutput sample: CMSampleBuffer, from connection: AVCaptureConnection)
}

public class AVCaptureVideoDataOutput: AVCaptureOutput {
    public override init() {}
    public var videoSettings: [String: Any]! = nil
    public var alwaysDiscardsLateVideoFrames = true
    public func setSampleBufferDelegate(
        _ delegate: (any AVCaptureVideoDataOutputSampleBufferDelegate)?, queue: DispatchQueue?) {}
}

public class AVCaptureSession: NSObject {
    public struct Preset: Sendable { public static let vga640x480 = Preset() }
    public override init() {}
    public var sessionPreset = Preset()
    public func canAddInput(_ input: AVCaptureInput) -> Bool { fatalError() }
    public func canAddOutput(_ output: AVCaptureOutput) -> Bool { fatalError() }
    public func addInput(_ input: AVCaptureInput) {}
    public func addOutput(_ output: AVCaptureOutput) {}
    public func startRunning() {}
    public func stopRunning() {}
}
