/// A picture as a camera or a file has it: four bytes a pixel, not upright yet.
public struct Picture: Pixels {
    public enum Order: Sendable { case rgb, bgr }

    /// of the upright picture
    public let width: Int
    public let height: Int
    /// rows of the picture as it is stored
    public let bytes: [UInt8]
    public let rowBytes: Int
    public let across: Int
    public let down: Int
    public let order: Order
    /// EXIF's orientation, 1 to 8: what makes it upright
    public let turned: Int

    /// Precondition: `bytes` holds `down` rows of `rowBytes`, each at least 4 x across.
    public init(bytes: [UInt8], rowBytes: Int, across: Int, down: Int, order: Order, turned: Int = 1) {
        precondition(rowBytes >= 4 * across && bytes.count >= rowBytes * down, "a picture has all its rows")
        (self.bytes, self.rowBytes, self.across, self.down) = (bytes, rowBytes, across, down)
        self.order = order
        self.turned = (1...8).contains(turned) ? turned : 1
        width = self.turned < 5 ? across : down
        height = self.turned < 5 ? down : across
    }

    public func rows(_ top: Int, _ count: Int, _ into: inout [UInt32]) {
        let (red, blue) = order == .rgb ? (0, 2) : (2, 0)
        var out = 0
        for y in top..<(top + count) {
            for x in 0..<width {
                let column: Int
                switch turned {
                case 2, 3: column = across - 1 - x
                case 5, 6: column = y
                case 7, 8: column = across - 1 - y
                default: column = x
                }
                let row: Int
                switch turned {
                case 3, 4: row = down - 1 - y
                case 5, 8: row = x
                case 6, 7: row = down - 1 - x
                default: row = y
                }
                let at = row * rowBytes + 4 * column
                into[out] = UInt32(bytes[at + red]) << 16 | UInt32(bytes[at + 1]) << 8 | UInt32(bytes[at + blue])
                out += 1
            }
        }
    }
}
