import AVFoundation
import ClassifierKit
import CoreVideo

/// The camera on the back, upright frames one at a time.
@MainActor final class PhoneCamera: Camera {
    private var session: AVCaptureSession?
    private var frames: Frames?

    func start() async throws -> AsyncStream<Picture> {
        guard await AVCaptureDevice.requestAccess(for: .video) else { throw CameraProblem.denied }
        guard let device = AVCaptureDevice.default(.builtInWideAngleCamera, for: .video, position: .back) else {
            throw CameraProblem.none
        }
        stop()
        let session = AVCaptureSession()
        session.sessionPreset = .vga640x480
        let output = AVCaptureVideoDataOutput()
        output.videoSettings = [kCVPixelBufferPixelFormatTypeKey as String: Int(kCVPixelFormatType_32BGRA)]
        output.alwaysDiscardsLateVideoFrames = true
        do {
            let input = try AVCaptureDeviceInput(device: device)
            guard session.canAddInput(input), session.canAddOutput(output) else {
                throw CameraProblem.failed("another app has it")
            }
            session.addInput(input)
            session.addOutput(output)
        } catch let problem as CameraProblem {
            throw problem
        } catch {
            throw CameraProblem.failed(error.localizedDescription)
        }
        if let connection = output.connection(with: .video), connection.isVideoRotationAngleSupported(90) {
            connection.videoRotationAngle = 90  // as the phone is held upright
        }
        let (stream, continuation) = AsyncStream.makeStream(of: Picture.self, bufferingPolicy: .bufferingNewest(1))
        let frames = Frames(continuation)
        output.setSampleBufferDelegate(frames, queue: frames.queue)
        (self.session, self.frames) = (session, frames)
        let running = Running(session: session)
        frames.queue.async { running.session.startRunning() }  // it blocks
        return stream
    }

    func stop() {
        if let session, let frames {
            let running = Running(session: session)
            frames.queue.async { running.session.stopRunning() }
            frames.finish()
        }
        (session, frames) = (nil, nil)
    }
}

/// A session may be started and stopped on one queue; AVFoundation says so, and not its type.
private struct Running: @unchecked Sendable {
    let session: AVCaptureSession
}

private final class Frames: NSObject, AVCaptureVideoDataOutputSampleBufferDelegate, @unchecked Sendable {
    let queue = DispatchQueue(label: "camera")
    private let continuation: AsyncStream<Picture>.Continuation

    init(_ continuation: AsyncStream<Picture>.Continuation) { self.continuation = continuation }

    func finish() { continuation.finish() }

    func captureOutput(
        _ output: AVCaptureOutput, didOutput sample: CMSampleBuffer, from connection: AVCaptureConnection
    ) {
        guard let buffer = CMSampleBufferGetImageBuffer(sample) else { return }
        CVPixelBufferLockBaseAddress(buffer, .readOnly)
        defer { CVPixelBufferUnlockBaseAddress(buffer, .readOnly) }
        guard let base = CVPixelBufferGetBaseAddress(buffer) else { return }
        let (line, height) = (CVPixelBufferGetBytesPerRow(buffer), CVPixelBufferGetHeight(buffer))
        let bytes = [UInt8](UnsafeRawBufferPointer(start: base, count: line * height))
        let across = CVPixelBufferGetWidth(buffer)
        continuation.yield(Picture(bytes: bytes, rowBytes: line, across: across, down: height, order: .bgr))
    }
}
