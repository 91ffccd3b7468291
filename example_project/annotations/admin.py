"""The annotation server's pages in Django's admin."""

from django.contrib import admin

from annotations.models import Annotation, Asset, Project, Segment, Task


@admin.register(Project)
class ProjectAdmin(admin.ModelAdmin):
    list_display = ["name", "owner"]


@admin.register(Task)
class TaskAdmin(admin.ModelAdmin):
    list_display = ["name", "project"]
    list_filter = ["project"]


@admin.register(Asset)
class AssetAdmin(admin.ModelAdmin):
    list_display = ["task", "frame", "size"]
    list_filter = ["task"]


@admin.register(Segment)
class SegmentAdmin(admin.ModelAdmin):
    list_display = ["task", "first_frame", "last_frame", "assignee"]
    list_filter = ["task", "assignee"]


@admin.register(Annotation)
class AnnotationAdmin(admin.ModelAdmin):
    list_display = ["label", "frame", "segment"]
    list_filter = ["label"]
