@_exported import CoreGraphics
@_exported import Foundation
@_exported import UIKit

@MainActor @preconcurrency public protocol View {
    associatedtype Body: View
    @ViewBuilder var body: Body { get }
}

extension Never: View { public var body: Never { fatalError() } }
public protocol Plain: View where Body == Never {}
extension Plain { public var body: Never { fatalError() } }
extension Optional: View where Wrapped: View { public var body: Never { fatalError() } }

public struct EmptyView: Plain { public init() {} }
public struct Two<A: View, B: View>: Plain {}
public struct Either<A: View, B: View>: Plain {}

@resultBuilder public struct ViewBuilder {
    public static func buildBlock() -> EmptyView { fatalError() }
    public static func buildExpression<V: View>(_ view: V) -> V { view }
    public static func buildPartialBlock<V: View>(first: V) -> V { first }
    public static func buildPartialBlock<A: View, B: View>(accumulated: A, next: B) -> Two<A, B> { fatalError() }
    public static func buildIf<V: View>(_ view: V?) -> V? { view }
    public static func buildEither<A: View, B: View>(first: A) -> Either<A, B> { fatalError() }
    public static func buildEither<A: View, B: View>(second: B) -> Either<A, B> { fatalError() }
    public static func buildLimitedAvailability<V: View>(_ view: V) -> V { view }
}

@MainActor @preconcurrency public protocol Scene {}
@resultBuilder public struct SceneBuilder {
    public static func buildBlock<S: Scene>(_ scene: S) -> S { scene }
}
public struct WindowGroup<Content: View>: Scene {
    nonisolated public init(@ViewBuilder content: @MainActor () -> Content) { fatalError() }
}
@MainActor @preconcurrency public protocol App {
    associatedtype Body: Scene
    @SceneBuilder var body: Body { get }
    init()
}
extension App { public static func main() {} }

@propertyWrapper public struct State<Value> {
    public init(wrappedValue: Value) { fatalError() }
    public var wrappedValue: Value { get { fatalError() } nonmutating set {} }
    public var projectedValue: Binding<Value> { fatalError() }
}
@propertyWrapper public struct Binding<Value> {
    public init(projectedValue: Binding<Value>) { fatalError() }
    public var wrappedValue: Value { get { fatalError() } nonmutating set {} }
}
extension Binding: Sendable where Value: Sendable {}
@propertyWrapper public struct Environment<Value> {
    public init(_ path: KeyPath<EnvironmentValues, Value>) { fatalError() }
    public var wrappedValue: Value { fatalError() }
}
public enum ScenePhase: Sendable { case background, inactive, active }
@MainActor public struct OpenURLAction { public func callAsFunction(_ url: URL) {} }
public struct EnvironmentValues {
    public var scenePhase: ScenePhase { fatalError() }
    public var openURL: OpenURLAction { fatalError() }
}

public struct Font: Sendable { public static let footnote = Font() }
public enum HorizontalAlignment: Sendable { case leading, center }
public enum TextAlignment: Sendable { case leading, center }
public enum AccessibilityChildBehavior: Sendable { case ignore }
public struct SegmentedPickerStyle: Sendable {}
public protocol PickerStyle {}
extension SegmentedPickerStyle: PickerStyle {}
extension PickerStyle where Self == SegmentedPickerStyle { public static var segmented: Self { fatalError() } }
public protocol PrimitiveButtonStyle {}
public struct BorderedButtonStyle: PrimitiveButtonStyle {}
public struct BorderedProminentButtonStyle: PrimitiveButtonStyle {}
extension PrimitiveButtonStyle where Self == BorderedButtonStyle { public static var bordered: Self { fatalError() } }
extension PrimitiveButtonStyle where Self == BorderedProminentButtonStyle {
    public static var borderedProminent: Self { fatalError() }
}

public struct Changed: Plain {}
extension View {
    public func navigationTitle(_ title: some StringProtocol) -> some View { Changed() }
    public func toolbar(@ViewBuilder _ content: () -> some View) -> some View { Changed() }
    public func task(@_inheritActorContext _ action: @escaping @Sendable () async -> Void) -> some View { Changed() }
    public func onChange<V: Equatable>(of value: V, _ action: @escaping () -> Void) -> some View { Changed() }
    public func onDisappear(perform action: (() -> Void)? = nil) -> some View { Changed() }
    public func scaledToFit() -> some View { Changed() }
    public func frame(maxHeight: CGFloat?) -> some View { Changed() }
    public func padding() -> some View { Changed() }
    public func font(_ font: Font?) -> some View { Changed() }
    public func monospacedDigit() -> some View { Changed() }
    public func multilineTextAlignment(_ alignment: TextAlignment) -> some View { Changed() }
    public func tag<V: Hashable>(_ value: V) -> some View { Changed() }
    public func pickerStyle(_ style: some PickerStyle) -> some View { Changed() }
    public func buttonStyle(_ style: some PrimitiveButtonStyle) -> some View { Changed() }
    public func accessibilityLabel(_ label: some StringProtocol) -> some View { Changed() }
    public func accessibilityElement(children: AccessibilityChildBehavior) -> some View { Changed() }
}

public struct Text: Plain { public init(_ text: some StringProtocol) {} }
public struct Label: Plain { public init(_ text: some StringProtocol, systemImage: String) {} }
public struct Image: Plain {
    public init(decorative: CGImage, scale: CGFloat) {}
    public func resizable() -> Image { self }
}
public struct Button: Plain {
    public init(_ text: some StringProtocol, action: @escaping @MainActor () -> Void) {}
    public init(_ text: some StringProtocol, systemImage: String, action: @escaping @MainActor () -> Void) {}
}
public struct ProgressView: Plain {
    public init(_ text: some StringProtocol) {}
    public init(value: Double?) {}
}
public struct LabeledContent: Plain { public init(_ text: some StringProtocol, value: some StringProtocol) {} }
public struct NavigationStack: Plain { public init(@ViewBuilder _ content: () -> some View) {} }
public struct NavigationLink: Plain {
    public init(_ text: some StringProtocol, @ViewBuilder destination: () -> some View) {}
}
public struct List: Plain { public init(@ViewBuilder _ content: () -> some View) {} }
public struct Section: Plain {
    public init(@ViewBuilder content: () -> some View) {}
    public init(_ title: some StringProtocol, @ViewBuilder content: () -> some View) {}
}
public struct HStack: Plain { public init(@ViewBuilder content: () -> some View) {} }
public struct VStack: Plain {
    public init(
        alignment: HorizontalAlignment = .center, spacing: CGFloat? = nil, @ViewBuilder content: () -> some View
    ) {}
}
public struct Picker: Plain {
    public init<V: Hashable>(
        _ text: some StringProtocol, selection: Binding<V>, @ViewBuilder content: () -> some View
    ) {}
}
public struct ForEach: Plain {
    public init<D: RandomAccessCollection>(_ data: D, @ViewBuilder content: @escaping (D.Element) -> some View)
    where D.Element: Identifiable {}
    public init<D: RandomAccessCollection, I: Hashable>(
        _ data: D, id: KeyPath<D.Element, I>, @ViewBuilder content: @escaping (D.Element) -> some View
    ) {}
}
