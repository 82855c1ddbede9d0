import org.jetbrains.kotlin.gradle.dsl.JvmTarget

plugins {
    alias(libs.plugins.android.application)
    alias(libs.plugins.kotlin.android)
}

android {
    namespace = "org.dap.classifier"
    compileSdk = 36

    defaultConfig {
        applicationId = "org.dap.classifier"
        minSdk = 26
        targetSdk = 34
        versionCode = 1
        versionName = "0.1.0"
        ndk {
            abiFilters += listOf("arm64-v8a", "x86_64")
        }
    }

    sourceSets["main"].apply {
        kotlin.srcDirs("src/main/kotlin", "../engine/src/main/kotlin", "../runner/src/main/kotlin")
        assets.srcDir(layout.buildDirectory.dir("model"))
    }

    androidResources {
        noCompress += "tflite" // it is mapped
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_1_8
        targetCompatibility = JavaVersion.VERSION_1_8
    }
}

kotlin {
    compilerOptions {
        jvmTarget = JvmTarget.JVM_1_8
    }
}

dependencies {
    implementation(project(":core"))
    implementation(libs.litert)
}

// The model that `make deploy TARGET=android` has put into apps/android/model, in assets/model.
val model = tasks.register<Copy>("model") {
    from(rootDir.resolve("model")) {
        include("manifest.json", "**/*.tflite", "**/*.png")
    }
    into(layout.buildDirectory.dir("model/model"))
    doFirst {
        check(rootDir.resolve("model/manifest.json").exists()) { "no model yet: make deploy TARGET=android" }
    }
}

tasks.named("preBuild") {
    dependsOn(model)
}
