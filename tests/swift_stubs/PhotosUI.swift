@_exported import SwiftUI

public protocol Transferable {}
extension Data: Transferable {}

public struct PHPickerFilter: Sendable { public static let images = PHPickerFilter() }

public struct PhotosPickerItem: Equatable, Hashable, Sendable {
    public func loadTransferable<T: Transferable>(type: T.Type) async throws -> T? { fatalError() }
}

public struct PhotosPicker: Plain {
    public init(_ text: some StringProtocol, selection: Binding<PhotosPickerItem?>, matching: PHPickerFilter?) {}
}
