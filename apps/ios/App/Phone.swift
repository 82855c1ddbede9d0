import ClassifierKit
@preconcurrency import Darwin
import Foundation
import UIKit

/// What this phone says of itself.
final class Phone: Device, @unchecked Sendable {
    /// only touched on the main actor
    private var left = 0
    private var leftBefore = 0
    private var observer: (any NSObjectProtocol)?

    init() {
        Task { @MainActor in
            UIDevice.current.isBatteryMonitoringEnabled = true
            observer = NotificationCenter.default.addObserver(
                forName: UIApplication.willResignActiveNotification, object: nil, queue: .main
            ) { [weak self] _ in
                self?.left += 1
            }
        }
    }

    @MainActor func describe() async -> Description {
        var system = utsname()
        uname(&system)
        let machine = withUnsafeBytes(of: &system.machine) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
        #if targetEnvironment(simulator)
            let emulated: String? = "the iOS simulator"
        #else
            let emulated: String? = nil
        #endif
        let (device, process) = (UIDevice.current, ProcessInfo.processInfo)
        return Description(
            device: "\(device.model) \(machine)", os: "\(device.systemName) \(device.systemVersion)", cpu: nil,
            cores: process.processorCount, arch: "arm64", emulated: emulated)
    }

    @MainActor func conditions() async -> Conditions {
        let (device, process) = (UIDevice.current, ProcessInfo.processInfo)
        let states: [UIDevice.BatteryState: String] = [.unplugged: "idle", .charging: "charging", .full: "full"]
        let level = device.batteryLevel  // below 0: not known
        let battery = level < 0 ? nil : "\(Int(100 * level)) % \(states[device.batteryState] ?? "")"
        return Conditions(
            battery: battery?.trimmingCharacters(in: .whitespaces), lowPower: process.isLowPowerModeEnabled,
            thermal: ThermalState(rawValue: process.thermalState.rawValue))
    }

    @MainActor func disturbed() async -> String? {
        defer { leftBefore = left }
        return left == leftBefore ? nil : "the app was not in front all the time"
    }

    func memoryMb() -> (now: Double, peak: Double)? {
        var found = task_vm_info_data_t()
        var count = mach_msg_type_number_t(MemoryLayout<task_vm_info_data_t>.size / MemoryLayout<natural_t>.size)
        let status = withUnsafeMutablePointer(to: &found) { pointer in
            pointer.withMemoryRebound(to: integer_t.self, capacity: Int(count)) {
                task_info(mach_task_self_, task_flavor_t(TASK_VM_INFO), $0, &count)
            }
        }
        guard status == KERN_SUCCESS, found.ledger_phys_footprint_peak > 0 else { return nil }
        return (Double(found.phys_footprint) / 1e6, Double(found.ledger_phys_footprint_peak) / 1e6)
    }
}
