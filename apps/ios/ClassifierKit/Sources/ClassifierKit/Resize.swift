/// Any picture to the size that the model takes, by the rule in the manifest (input.resize): what the pipeline's
/// evaluation does, to the bit; and what the web app and the Android app do. Reads the picture in strips.
public struct ResizeRule: Sendable {
    public let shorterSide: Int
    /// pictures are squeezed into a square
    public let squeezed: Bool
    public let kernel: Kernel
    public let centreCrop: Int

    /// What of the manifest's rule is a parameter; the rest describes in words what stands here. Throws Fault.
    public init(_ input: InputSpec) throws {
        let rule = Item(.object(input.resize), "\(manifestName): input.resize")
        let name = try rule.member("interpolation").text()
        let size = try rule.member("centre_crop").count()
        if size != input.height || size != input.width {
            throw Fault("\(manifestName): input.resize makes \(size) pixels of \(input.height) x \(input.width)")
        }
        shorterSide = try rule.member("shorter_side").count()
        if shorterSide < size { throw Fault("\(manifestName): input.resize cuts \(size) pixels out of \(shorterSide)") }
        squeezed = try rule.member("longer_side").text() == "shorter_side"
        guard let known = Kernel(rawValue: name) else {
            throw Fault("this app does not know the interpolation \(shown(name))")
        }
        kernel = known
        centreCrop = size
    }
}

public enum Kernel: String, Sendable {
    case bilinear, bicubic

    var reach: Double { self == .bilinear ? 1 : 2 }

    /// x: distance, at least 0
    func at(_ x: Double) -> Double {
        if self == .bilinear { return x < 1 ? 1 - x : 0 }
        let a = -0.5
        if x < 1 { return ((a + 2) * x - (a + 3)) * x * x + 1 }
        return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0
    }
}

/// Upright pixels 0x00RRGGBB, some rows at a time.
public protocol Pixels: Sendable {
    var width: Int { get }
    var height: Int { get }

    /// count x width numbers from the beginning of `into` on.
    func rows(_ top: Int, _ count: Int, _ into: inout [UInt32])
}

/// Side lengths of the whole picture once resized, and where the part lies that is kept.
struct Plan {
    let wide: Int
    let tall: Int
    let left: Int
    let top: Int

    init(_ width: Int, _ height: Int, _ rule: ResizeRule) {
        func side(_ mine: Int, _ other: Int) -> Int {
            if rule.squeezed || mine <= other { return rule.shorterSide }
            return Int(min(Double(rule.shorterSide * mine) / Double(other), Double(Int32.max)))
        }
        func halfToEven(_ side: Int) -> Int { Int((Double(side - rule.centreCrop) / 2).rounded(.toNearestOrEven)) }
        wide = side(width, height)
        tall = side(height, width)
        left = halfToEven(wide)
        top = halfToEven(tall)
    }
}

private let one = 1 << 22
private let half = one / 2
private let stripPixels = 1 << 18

/// RGB (size, size, 3) of a picture.
public func resize(_ source: some Pixels, _ rule: ResizeRule) -> [UInt8] {
    let (width, height) = (source.width, source.height)
    let plan = Plan(width, height, rule)
    let size = rule.centreCrop
    let across = Taps(width, plan.wide, plan.left, size, rule.kernel)
    let down = Taps(height, plan.tall, plan.top, size, rule.kernel)
    // As Pillow: what is far higher than wide is narrowed along y first.
    let rowsFirst = plan.tall < height && height - plan.tall > 2 * (width - plan.wide)
    let (first, last) = (down.from[0], down.to[size - 1])
    let strip = max(1, min(stripPixels / width, last - first))
    var pixels = [UInt32](repeating: 0, count: strip * width)
    var pass: any Pass = rowsFirst ? RowsFirst(across, down, size) : ColumnsFirst(across, down, first, last, size)
    var row = first
    while row < last {
        let count = min(strip, last - row)
        source.rows(row, count, &pixels)
        pass.take(pixels, row, count, width)
        row += count
    }
    return pass.result()
}

private protocol Pass {
    mutating func take(_ pixels: [UInt32], _ row: Int, _ count: Int, _ width: Int)
    func result() -> [UInt8]
}

/// Along x as the rows come, then along y.
private struct ColumnsFirst: Pass {
    private let across: Taps
    private let down: Taps
    private let first: Int
    private let size: Int
    private var narrowed: [UInt8]

    init(_ across: Taps, _ down: Taps, _ first: Int, _ last: Int, _ size: Int) {
        (self.across, self.down, self.first, self.size) = (across, down, first, size)
        narrowed = [UInt8](repeating: 0, count: (last - first) * size * 3)
    }

    mutating func take(_ pixels: [UInt32], _ row: Int, _ count: Int, _ width: Int) {
        for i in 0..<count {
            var out = (row - first + i) * size * 3
            for x in 0..<size {
                var (red, green, blue) = (half, half, half)
                var weight = x * across.stride
                for place in (i * width + across.from[x])..<(i * width + across.to[x]) {
                    let w = across.weights[weight]
                    let pixel = pixels[place]
                    red += w * Int(pixel >> 16 & 255)
                    green += w * Int(pixel >> 8 & 255)
                    blue += w * Int(pixel & 255)
                    weight += 1
                }
                narrowed[out] = byte(red)
                narrowed[out + 1] = byte(green)
                narrowed[out + 2] = byte(blue)
                out += 3
            }
        }
    }

    func result() -> [UInt8] {
        let line = size * 3
        var out = [UInt8](repeating: 0, count: size * line)
        for y in 0..<size {
            var sums = [Int](repeating: half, count: line)
            for row in down.from[y]..<down.to[y] {
                let weight = down.weights[y * down.stride + row - down.from[y]]
                let begin = (row - first) * line
                for i in 0..<line { sums[i] += weight * Int(narrowed[begin + i]) }
            }
            for i in 0..<line { out[y * line + i] = byte(sums[i]) }
        }
        return out
    }
}

/// Along y as the rows come, in the columns that matter, then along x.
private struct RowsFirst: Pass {
    private let across: Taps
    private let down: Taps
    private let size: Int
    private let left: Int
    private let line: Int
    private var sums: [Int]

    init(_ across: Taps, _ down: Taps, _ size: Int) {
        (self.across, self.down, self.size) = (across, down, size)
        left = across.from[0]
        line = (across.to[size - 1] - left) * 3
        sums = [Int](repeating: half, count: size * line)
    }

    mutating func take(_ pixels: [UInt32], _ row: Int, _ count: Int, _ width: Int) {
        for y in 0..<size {
            let (from, to) = (max(down.from[y], row), min(down.to[y], row + count))
            for r in from..<max(from, to) {
                let weight = down.weights[y * down.stride + r - down.from[y]]
                var place = (r - row) * width + left
                for i in stride(from: y * line, to: (y + 1) * line, by: 3) {
                    let pixel = pixels[place]
                    sums[i] += weight * Int(pixel >> 16 & 255)
                    sums[i + 1] += weight * Int(pixel >> 8 & 255)
                    sums[i + 2] += weight * Int(pixel & 255)
                    place += 1
                }
            }
        }
    }

    func result() -> [UInt8] {
        var out = [UInt8](repeating: 0, count: size * size * 3)
        for y in 0..<size {
            for x in 0..<size {
                for colour in 0..<3 {
                    var sum = half
                    for i in across.from[x]..<across.to[x] {
                        let value = byte(sums[y * line + (i - left) * 3 + colour])
                        sum += across.weights[x * across.stride + i - across.from[x]] * Int(value)
                    }
                    out[(y * size + x) * 3 + colour] = byte(sum)
                }
            }
        }
        return out
    }
}

/// A sum of weighted bytes and a half as a byte, cut off to 0..255.
private func byte(_ sum: Int) -> UInt8 { UInt8(clamping: sum >> 22) }

/// Which inputs make each of the `kept` outputs along one axis, from output `first` on.
private struct Taps {
    /// first input of each output, and one behind its last
    var from: [Int]
    var to: [Int]
    let stride: Int
    /// of output i from i * stride on; multiples of 1, where 2^22 is one
    var weights: [Int]

    init(_ inputs: Int, _ outputs: Int, _ first: Int, _ kept: Int, _ kernel: Kernel) {
        if inputs == outputs {
            stride = 1
            weights = [Int](repeating: one, count: kept)
            from = (0..<kept).map { first + $0 }
            to = from.map { $0 + 1 }
            return
        }
        let scale = Double(inputs) / Double(outputs)
        let stretch = max(scale, 1)
        stride = Int((2 * kernel.reach * stretch).rounded(.up)) + 2
        weights = [Int](repeating: 0, count: kept * stride)
        from = [Int](repeating: 0, count: kept)
        to = from
        for i in 0..<kept {
            let centre = (Double(first + i) + 0.5) * scale
            from[i] = max(0, Int((centre - kernel.reach * stretch).rounded(.down)))
            to[i] = min(inputs, Int((centre + kernel.reach * stretch).rounded(.up)))
            var row: [Double] = []
            var sum = 0.0
            for j in from[i]..<to[i] {
                row.append(kernel.at(abs(Double(j) - centre + 0.5) * (1 / stretch)))
                sum += row[row.count - 1]
            }
            for (j, value) in row.enumerated() {
                let weight = value / sum * Double(one)
                weights[i * stride + j] = Int(weight < 0 ? weight - 0.5 : weight + 0.5)
            }
        }
    }
}
