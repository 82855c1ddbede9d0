import ClassifierKit
import SwiftUI

@main
struct ClassifierApp: App {
    var body: some Scene {
        WindowGroup {
            if let job = Jobs.asked {
                JobView(id: job)
            } else {
                MainView(
                    shown: Classifier(
                        models: Bundled(), engine: CoreMlEngine(), camera: PhoneCamera(), host: Phone()))
            }
        }
    }
}
