@_exported import CoreGraphics
@_exported import Foundation

@MainActor public class UIDevice: NSObject {
    public enum BatteryState: Int, Sendable { case unknown, unplugged, charging, full }
    public static let current = UIDevice()
    public var model: String { fatalError() }
    public var systemName: String { fatalError() }
    public var systemVersion: String { fatalError() }
    public var batteryLevel: Float { fatalError() }
    public var batteryState: BatteryState { fatalError() }
    public var isBatteryMonitoringEnabled = false
}

@MainActor public class UIApplication: NSObject {
    public static let shared = UIApplication()
    public static let openSettingsURLString = ""
    nonisolated public static let willResignActiveNotification = Notification.Name("")
    public var isIdleTimerDisabled = false
}

extension ProcessInfo {
    public enum ThermalState: Int, Sendable { case nominal, fair, serious, critical }
    public var thermalState: ThermalState { fatalError() }
    public var isLowPowerModeEnabled: Bool { fatalError() }
}

// Foundation's on Apple's systems
extension URL {
    public static var documentsDirectory: URL { fatalError() }
}
