import ClassifierKit
import CoreGraphics
import Foundation
import ImageIO
import PhotosUI
import SwiftUI

/// The model that lies in the app: the folder `model` as `make app TARGET=ios` leaves it, unchanged.
struct Bundled: Models {
    private var folder: URL { Bundle.main.bundleURL.appending(path: "model") }

    func manifest() throws -> Manifest {
        guard let content = try? Data(contentsOf: folder.appending(path: manifestName)) else {
            throw Fault("there is none in this app: make app TARGET=ios puts one in")
        }
        return try Manifest([UInt8](content))
    }

    func file(_ name: String) -> URL { folder.appending(path: name) }

    func golden(_ name: String) throws -> [UInt8] {
        guard let content = try? Data(contentsOf: file(name)), let picture = PhotoReader.decode(content) else {
            throw Fault("\(name) is missing or no picture")
        }
        var pixels = [UInt32](repeating: 0, count: picture.width * picture.height)
        picture.rows(0, picture.height, &pixels)
        return pixels.flatMap { pixel in [16, 8, 0].map { UInt8(truncatingIfNeeded: pixel >> UInt32($0)) } }
    }
}

enum PhotoReader {
    /// a photo of more pixels would not fit into a phone's memory beside everything else
    private static let pixelsMax = 64_000_000

    static func read(_ item: PhotosPickerItem) async -> Picture? {
        guard let content = try? await item.loadTransferable(type: Data.self) else { return nil }
        return decode(content)
    }

    /// Pixels as they stand in the file, in its own colours, with the turn that makes them upright. nil: no picture.
    static func decode(_ content: Data) -> Picture? {
        guard let source = CGImageSourceCreateWithData(content as CFData, nil),
            let image = CGImageSourceCreateImageAtIndex(source, 0, nil), image.width * image.height <= pixelsMax
        else { return nil }
        let properties = CGImageSourceCopyPropertiesAtIndex(source, 0, nil) as? [String: Any]
        let turned = properties?[kCGImagePropertyOrientation as String] as? Int ?? 1
        // In the picture's own space nothing is converted; a grey or CMYK one has to become RGB.
        let own = image.colorSpace.flatMap { $0.model == .rgb ? $0 : nil }
        let line = 4 * image.width
        var bytes = [UInt8](repeating: 0, count: line * image.height)
        let isDrawn = bytes.withUnsafeMutableBytes { memory -> Bool in
            guard
                let context = CGContext(
                    data: memory.baseAddress, width: image.width, height: image.height, bitsPerComponent: 8,
                    bytesPerRow: line, space: own ?? CGColorSpace(name: CGColorSpace.sRGB)!,
                    bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)
            else { return false }
            context.draw(image, in: CGRect(x: 0, y: 0, width: image.width, height: image.height))
            return true
        }
        if !isDrawn { return nil }
        return Picture(
            bytes: bytes, rowBytes: line, across: image.width, down: image.height, order: .rgb, turned: turned)
    }
}

extension Picture {
    private static let previewSide = 512

    /// Upright, no larger than a screen needs.
    var image: CGImage? {
        let step = max(1, max(width, height) / Picture.previewSide)
        let (wide, tall) = (width / step, height / step)
        var line = [UInt32](repeating: 0, count: width)
        var bytes: [UInt8] = []
        bytes.reserveCapacity(4 * wide * tall)
        for y in 0..<tall {
            rows(y * step, 1, &line)
            for x in 0..<wide {
                let pixel = line[x * step]
                for shift: UInt32 in [16, 8, 0] { bytes.append(UInt8(truncatingIfNeeded: pixel >> shift)) }
                bytes.append(255)
            }
        }
        guard let provider = CGDataProvider(data: Data(bytes) as CFData) else { return nil }
        return CGImage(
            width: wide, height: tall, bitsPerComponent: 8, bitsPerPixel: 32, bytesPerRow: 4 * wide,
            space: CGColorSpace(name: CGColorSpace.sRGB)!,
            bitmapInfo: CGBitmapInfo(rawValue: CGImageAlphaInfo.noneSkipLast.rawValue), provider: provider, decode: nil,
            shouldInterpolate: false, intent: .defaultIntent)
    }
}
