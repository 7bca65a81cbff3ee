"""Draws scenes with VTK: `python -m tests.opengl.scenes_vtk FILE`.

The window is VTK's own choice: EGL without DISPLAY, GLX with one; VTK_DEFAULT_OPENGL_WINDOW names
another. FILE (.npz) gets every scene's pixels, the standard output one JSON object.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import vtkmodules.vtkRenderingFreeType
import vtkmodules.vtkRenderingOpenGL2
import vtkmodules.vtkRenderingVolumeOpenGL2  # noqa: F401 (all three: what the others draw with)
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkCommonDataModel import vtkPiecewiseFunction
from vtkmodules.vtkFiltersCore import vtkElevationFilter
from vtkmodules.vtkFiltersSources import (
    vtkConeSource,
    vtkCubeSource,
    vtkCylinderSource,
    vtkSphereSource,
)
from vtkmodules.vtkImagingCore import vtkRTAnalyticSource
from vtkmodules.vtkRenderingCore import (
    vtkActor,
    vtkColorTransferFunction,
    vtkGlyph3DMapper,
    vtkPolyDataMapper,
    vtkRenderer,
    vtkRenderWindow,
    vtkTextActor,
    vtkVolume,
    vtkVolumeProperty,
    vtkWindowToImageFilter,
)
from vtkmodules.vtkRenderingVolume import vtkGPUVolumeRayCastMapper

SIZE = (320, 240)
Renderer = Any
_numbers: Callable[..., Any] = vtk_to_numpy  # which has no types


def _actor(source: Any) -> Any:
    mapper = vtkPolyDataMapper()
    mapper.SetInputConnection(source.GetOutputPort())
    actor = vtkActor()
    actor.SetMapper(mapper)
    return actor


def surfaces(renderer: Renderer) -> None:
    """Lit surfaces with edges and specular light."""
    for number, kind in enumerate((vtkConeSource, vtkSphereSource, vtkCylinderSource)):
        source = kind()
        source.SetResolution(24) if hasattr(source, "SetResolution") else None
        actor = _actor(source)
        actor.SetPosition(1.3 * number - 1.3, 0.1 * number, 0)
        look = actor.GetProperty()
        look.SetColor(0.9 - 0.3 * number, 0.3 + 0.2 * number, 0.4)
        look.SetSpecular(0.6)
        look.SetSpecularPower(20)
        look.SetEdgeVisibility(number == 1)
        renderer.AddActor(actor)


def translucent(renderer: Renderer) -> None:
    """Depth peeling: surfaces seen through each other."""
    renderer.SetUseDepthPeeling(1)
    renderer.SetMaximumNumberOfPeels(6)
    for number in range(4):
        source = vtkSphereSource()
        source.SetCenter(0.4 * number, 0.15 * number, 0.2 * number)
        source.SetThetaResolution(20)
        source.SetPhiResolution(20)
        actor = _actor(source)
        actor.GetProperty().SetOpacity(0.4)
        actor.GetProperty().SetColor(number / 3, 1 - number / 3, 0.5)
        renderer.AddActor(actor)


def volume(renderer: Renderer) -> None:
    """Ray casting in a 3D texture."""
    source = vtkRTAnalyticSource()
    source.SetWholeExtent(-12, 12, -12, 12, -12, 12)
    mapper = vtkGPUVolumeRayCastMapper()
    mapper.SetInputConnection(source.GetOutputPort())
    mapper.SetAutoAdjustSampleDistances(0)
    mapper.SetUseJittering(0)
    colours, opacity = vtkColorTransferFunction(), vtkPiecewiseFunction()
    for at, red, much in ((40, 0.0, 0.0), (150, 0.5, 0.02), (280, 1.0, 0.3)):
        colours.AddRGBPoint(at, red, 0.5, 1 - red)
        opacity.AddPoint(at, much)
    look = vtkVolumeProperty()
    look.SetColor(colours)
    look.SetScalarOpacity(opacity)
    look.ShadeOn()
    look.SetInterpolationTypeToLinear()
    body = vtkVolume()
    body.SetMapper(mapper)
    body.SetProperty(look)
    renderer.AddVolume(body)


def glyphs(renderer: Renderer) -> None:
    """Instances, coloured by a table through a texture, and text."""
    points = vtkSphereSource()
    points.SetThetaResolution(16)
    points.SetPhiResolution(12)
    raised = vtkElevationFilter()
    raised.SetInputConnection(points.GetOutputPort())
    raised.SetLowPoint(-0.5, -0.5, -0.5)
    raised.SetHighPoint(0.5, 0.5, 0.5)
    mapper, cube = vtkGlyph3DMapper(), vtkCubeSource()
    mapper.SetInputConnection(raised.GetOutputPort())
    mapper.SetSourceConnection(cube.GetOutputPort())
    mapper.SetScaleFactor(0.06)
    actor = vtkActor()
    actor.SetMapper(mapper)
    renderer.AddActor(actor)
    text = vtkTextActor()
    text.SetInput("gpupool 0123")
    text.GetTextProperty().SetFontSize(24)
    renderer.AddViewProp(text)


SCENES: dict[str, Callable[[Renderer], None]] = {
    each.__name__: each for each in (surfaces, translucent, volume, glyphs)
}


def _draw(scene: Callable[[Renderer], None]) -> tuple[np.ndarray[Any, Any], Any]:
    window, renderer = vtkRenderWindow(), vtkRenderer()
    window.SetMultiSamples(0)
    window.SetAlphaBitPlanes(1)
    window.SetOffScreenRendering(1)
    window.SetSize(*SIZE)
    window.AddRenderer(renderer)
    renderer.SetBackground(0.1, 0.2, 0.3)
    scene(renderer)
    renderer.ResetCamera()
    renderer.GetActiveCamera().Azimuth(20)
    renderer.GetActiveCamera().Elevation(15)
    window.Render()
    seen = vtkWindowToImageFilter()
    seen.SetInput(window)
    seen.ReadFrontBufferOff()
    seen.Update()
    image = seen.GetOutput()
    width, height, _ = image.GetDimensions()
    pixels = _numbers(image.GetPointData().GetScalars()).reshape(height, width, -1).copy()
    return pixels, window


def main() -> None:
    """Draws all of them."""
    told: dict[str, Any] = {}
    drawn = {}
    for name, scene in SCENES.items():
        drawn[name], window = _draw(scene)
        report = window.ReportCapabilities().splitlines()
        said = [line.partition(":")[2].strip() for line in report if "renderer string" in line]
        told = {"window": window.GetClassName(), "renderer": said[0] if said else ""}
    np.savez(sys.argv[1], allow_pickle=False, **drawn)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
