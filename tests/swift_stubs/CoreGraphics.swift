@_exported import Foundation

public typealias CFString = String
public typealias CFData = Data
public typealias CFDictionary = NSDictionary

public enum CGColorSpaceModel: Sendable { case rgb, monochrome, cmyk }

public final class CGColorSpace: Sendable {
    public static let sRGB: CFString = ""
    public init?(name: CFString) { fatalError() }
    public var model: CGColorSpaceModel { fatalError() }
}

public enum CGImageAlphaInfo: UInt32, Sendable { case none, premultipliedLast, noneSkipLast }

public struct CGBitmapInfo: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
}

public enum CGColorRenderingIntent: Sendable { case defaultIntent }

public final class CGDataProvider {
    public init?(data: CFData) { fatalError() }
}

public final class CGImage {
    public init?(
        width: Int, height: Int, bitsPerComponent: Int, bitsPerPixel: Int, bytesPerRow: Int, space: CGColorSpace,
        bitmapInfo: CGBitmapInfo, provider: CGDataProvider, decode: UnsafePointer<CGFloat>?, shouldInterpolate: Bool,
        intent: CGColorRenderingIntent
    ) { fatalError() }
    public var width: Int { fatalError() }
    public var height: Int { fatalError() }
    public var colorSpace: CGColorSpace? { fatalError() }
}

public final class CGContext {
    public init?(
        data: UnsafeMutableRawPointer?, width: Int, height: Int, bitsPerComponent: Int, bytesPerRow: Int,
        space: CGColorSpace, bitmapInfo: UInt32
    ) { fatalError() }
    public func draw(_ image: CGImage, in rect: CGRect) {}
}
