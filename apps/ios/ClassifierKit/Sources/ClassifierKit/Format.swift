import Foundation

/// Numbers as they are shown; as apps/web/src/app/format.ts.
public enum Format {
    private static let minus = "\u{2212}"

    /// Three digits are what a measurement is worth.
    public static func milliseconds(_ value: Double) -> String { "\(threeDigits(value)) ms" }

    public static func bytes(_ value: Double) -> String {
        if value < 1e6 { return "\(whole(value / 1e3)) kB" }
        return "\(fixed(value / 1e6, value < 1e7 ? 2 : 1)) MB"
    }

    public static func count(_ value: Double) -> String {
        if value < 1e3 { return whole(value) }
        return value < 1e6 ? "\(threeDigits(value / 1e3)) k" : "\(threeDigits(value / 1e6)) M"
    }

    public static func percent(_ share: Double, _ digits: Int = 1) -> String { "\(fixed(100 * share, digits)) %" }

    /// A change against `from`, in percent.
    public static func change(_ from: Double, _ to: Double) -> String {
        let share = (100 * (to / from - 1)).rounded(.toNearestOrAwayFromZero)
        if share == 0 { return "the same" }
        return "\(share < 0 ? minus : "+")\(whole(abs(share))) %"
    }

    public static func points(_ from: Double, _ to: Double) -> String {
        if abs(to - from) < 0.05 { return "the same" }
        return "\(to < from ? minus : "+")\(fixed(abs(to - from), 1)) points"
    }

    /// As a name of a class is read; data sets write them with underscores.
    public static func label(_ name: String) -> String { name.replacingOccurrences(of: "_", with: " ") }

    public static func digits(_ value: Double) -> String { String(format: "%.3g", value) }

    static func fixed(_ value: Double, _ digits: Int) -> String { String(format: "%.\(digits)f", value) }

    private static func whole(_ value: Double) -> String { fixed(value.rounded(.toNearestOrAwayFromZero), 0) }

    private static func threeDigits(_ value: Double) -> String {
        if value >= 100 { return whole(value) }
        return fixed(value, value >= 10 ? 1 : 2)
    }
}
